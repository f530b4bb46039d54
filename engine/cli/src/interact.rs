//! The question before the first write.

use std::io::{BufRead, IsTerminal, Write};

use async_trait::async_trait;
use farrier_exec::driver::{Answer, Confirm};
use farrier_exec::{GuardFinding, Plan};
use farrier_model::Text;
use farrier_model::spec::Risk;
use farrier_runbook::graph::GuardAction;

use crate::render::plan::{Shown, draw};
use crate::render::style::Style;

/// Shows the plan and asks.
pub struct Ask {
    /// Answered on the command line: `--yes`.
    pub yes: bool,
    /// Guards that ask are accepted: `--accept-guards`.
    pub accept_guards: bool,
    /// The ceiling of the runbook; a destructive run asks for its name.
    pub risk: Risk,
    /// How much of the plan to show.
    pub shown: Shown,
    /// Do not show the plan when nobody has to look at it.
    pub quiet: bool,
}

#[async_trait]
impl Confirm for Ask {
    async fn confirm(&self, plan: &Plan) -> Answer {
        let style = Style::stderr();
        if !(self.quiet && self.yes) {
            eprint!("{}", draw(plan, style, self.shown));
        }
        let asking: Vec<&GuardFinding> =
            plan.guards.iter().filter(|f| !f.passed && f.otherwise != GuardAction::Stop).collect();
        if plan.guards.iter().any(|f| !f.passed && f.otherwise == GuardAction::Stop) {
            // The run itself fails with the guard's sentence; there is nothing to ask.
            return Answer::Proceed { accepted: Vec::new() };
        }
        let mut accepted: Vec<Text> = Vec::new();
        let terminal = std::io::stdin().is_terminal();
        for finding in asking {
            if self.accept_guards {
                accepted.push(finding.guard.as_str().into());
            } else if terminal {
                eprintln!("{}", style.warn(&finding.sentence()));
                let answer = read_line("Let these changes pass all the same? Type `accept`: ");
                if answer.as_deref() != Some("accept") {
                    return Answer::Decline;
                }
                accepted.push(finding.guard.as_str().into());
            }
        }
        if self.yes {
            return Answer::Proceed { accepted };
        }
        if !terminal {
            eprintln!("nobody is here to ask; run it with `--yes` to make these changes");
            return Answer::Decline;
        }
        let confirmed = if self.risk == Risk::Destructive {
            let question =
                format!("This runbook can destroy. Type `{}` to make these changes: ", plan.runbook);
            read_line(&question).is_some_and(|line| line == *plan.runbook)
        } else {
            read_line("Make these changes? [y/N] ")
                .is_some_and(|line| matches!(line.to_lowercase().as_str(), "y" | "yes"))
        };
        if confirmed { Answer::Proceed { accepted } } else { Answer::Decline }
    }
}

/// Asks on standard error, and reads a line.
pub fn read_line(question: &str) -> Option<String> {
    eprint!("{question}");
    std::io::stderr().flush().ok()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).ok()?;
    Some(line.trim().to_owned())
}

/// Asks on standard error, and reads a line that the terminal does not show. Nothing when it is broken off.
pub fn read_hidden(question: &str) -> std::io::Result<Option<String>> {
    use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
    let input = std::io::stdin();
    let shown = tcgetattr(&input)?;
    let mut hidden = shown.clone();
    // Ctrl-C comes as a character, and ends the line: a process that ended here would leave the terminal mute.
    hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    hidden.special_codes[SpecialCodeIndex::VEOL] = BREAK;
    // Before the question: whoever waits for it may type at once.
    tcsetattr(&input, OptionalActions::Flush, &hidden)?;
    let line = ask_hidden(question, &mut input.lock());
    let restored = tcsetattr(&input, OptionalActions::Now, &shown);
    eprintln!();
    let line = line?;
    restored?;
    if line.contains(&BREAK) {
        return Ok(None);
    }
    let wrong = |_| std::io::Error::new(std::io::ErrorKind::InvalidData, "it is not UTF-8");
    String::from_utf8(line).map(Some).map_err(wrong)
}

/// Ctrl-C.
const BREAK: u8 = 3;

fn ask_hidden(question: &str, input: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut errors = std::io::stderr().lock();
    errors.write_all(question.as_bytes())?;
    errors.flush()?;
    let mut line = Vec::new();
    loop {
        let come = input.fill_buf()?;
        let end = come.iter().position(|byte| matches!(*byte, b'\n' | BREAK));
        let taken = end.map_or(come.len(), |end| end + 1);
        line.extend_from_slice(&come[..taken]);
        input.consume(taken);
        if end.is_some() || taken == 0 {
            return Ok(line);
        }
    }
}
