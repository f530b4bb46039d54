//! What happens to a run while a case goes on: people who answer, the world that changes, a process that dies.

use farrier_model::spec::{ActionSpec, Catalog};
use farrier_model::{Effect, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use super::words::Length;
use crate::at::At;
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, Span, nearest, quoted};
use crate::read::{NoHooks, check_schema, constant};
use crate::yaml::{Node, NodeKind};

/// Something that happens at a time, or after a step. Besides `at` or `after`, exactly one thing.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventAt {
    /// When, from the start of the case.
    pub at: Option<At<Length>>,
    /// As soon as this step of the run has succeeded, before any step that needs it begins.
    pub after: Option<At<String>>,
    /// Somebody sends this signal of the runbook.
    pub signal: Option<At<String>>,
    /// Somebody approves what this step waits with; `-` for the run as a whole.
    pub approve: Option<At<String>>,
    /// Somebody rejects it.
    pub reject: Option<At<String>>,
    /// Somebody stops the run.
    pub cancel: Option<At<bool>>,
    /// With `cancel`: what was done is undone.
    pub undo: Option<At<bool>>,
    /// Something changes the world, without the run: an action on the targets of the case.
    #[serde(rename = "do")]
    pub act: Option<Call>,
    /// The process that drives the run dies, and another one takes the run up.
    pub crash: Option<At<bool>>,
    /// Somebody says of this step, which is in doubt, whether it happened.
    pub resolve: Option<At<String>>,
    /// With `resolve`: it happened.
    pub applied: Option<At<bool>>,
    /// With `applied: true`: what it gave, fields of the step's output.
    pub output: Option<Node>,
    /// Somebody lets a parked run go on.
    pub resume: Option<At<bool>>,
    /// With `resume`: and accepts what the guard asks about.
    pub accept_guard: Option<At<bool>>,
    /// Who. Without it, `somebody`.
    pub by: Option<String>,
    /// What they say.
    pub reason: Option<String>,
    /// It must be refused, with a message that contains this.
    pub refused: Option<At<String>>,
}

/// An action with its input.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The action.
    pub uses: At<String>,
    /// Its input. Nothing in it is evaluated.
    pub with: Option<Node>,
    /// The input as the action reads it: filled when the file has been checked.
    #[serde(skip)]
    pub input: Value,
}

/// The one thing that an [`EventAt`] is.
#[derive(Debug, Clone, Copy)]
pub enum Happens<'a> {
    /// A signal.
    Signal(&'a At<String>),
    /// A yes.
    Approve(&'a At<String>),
    /// A no.
    Reject(&'a At<String>),
    /// The run is stopped.
    Cancel {
        /// And undone.
        undo: bool,
    },
    /// The world changes.
    Act(&'a Call),
    /// The process dies.
    Crash,
    /// Word of a step in doubt.
    Resolve {
        /// The step.
        step: &'a At<String>,
        /// It happened.
        applied: bool,
        /// What it gave.
        output: Option<&'a Node>,
    },
    /// A parked run goes on.
    Resume {
        /// The guard that asks is accepted.
        accept_guard: bool,
    },
}

fn says(word: Option<&At<bool>>) -> bool {
    word.is_some_and(|word| word.value)
}

impl EventAt {
    /// What happens; nothing when that is not exactly one thing.
    pub fn happens(&self) -> Option<Happens<'_>> {
        let applied = says(self.applied.as_ref());
        let all = [
            self.signal.as_ref().map(Happens::Signal),
            self.approve.as_ref().map(Happens::Approve),
            self.reject.as_ref().map(Happens::Reject),
            says(self.cancel.as_ref()).then(|| Happens::Cancel { undo: says(self.undo.as_ref()) }),
            self.act.as_ref().map(Happens::Act),
            says(self.crash.as_ref()).then_some(Happens::Crash),
            self.resolve.as_ref().map(|step| Happens::Resolve {
                step,
                applied,
                output: self.output.as_ref(),
            }),
            says(self.resume.as_ref())
                .then(|| Happens::Resume { accept_guard: says(self.accept_guard.as_ref()) }),
        ];
        let mut happening = all.into_iter().flatten();
        happening.next().filter(|_| happening.next().is_none())
    }

    /// A word that belongs to something else than what happens.
    fn stray(&self, happens: Happens<'_>) -> Option<(Span, &'static str)> {
        let of = |word: &Option<At<bool>>, belongs: bool, about| {
            word.as_ref().filter(|_| !belongs).map(|word| (word.span, about))
        };
        let cancels = matches!(happens, Happens::Cancel { .. });
        let resolves = matches!(happens, Happens::Resolve { .. });
        let resumes = matches!(happens, Happens::Resume { .. });
        let applied = matches!(happens, Happens::Resolve { applied: true, .. });
        let output = self.output.as_ref().filter(|_| !applied);
        let others = matches!(happens, Happens::Act(_) | Happens::Crash);
        let refused = self.refused.as_ref().filter(|_| others);
        of(&self.undo, cancels, "`undo` belongs to `cancel`")
            .or(of(&self.applied, resolves, "`applied` belongs to `resolve`"))
            .or(of(&self.accept_guard, resumes, "`accept_guard` belongs to `resume`"))
            .or(output.map(|output| (output.span, "`output` belongs to `resolve` with `applied: true`")))
            .or(refused.map(|refused| (refused.span, "only what people ask can be refused")))
    }

    /// Where to point; `test` when there is nothing of its own.
    pub(super) fn span(&self, test: Span) -> Span {
        let when = self.at.as_ref().map(|at| at.span).or(self.after.as_ref().map(|step| step.span));
        let texts = [&self.signal, &self.approve, &self.reject, &self.resolve]
            .into_iter()
            .flatten()
            .map(|what| what.span);
        let words = [&self.cancel, &self.crash, &self.resume].into_iter().flatten().map(|what| what.span);
        let act = self.act.as_ref().map(|call| call.uses.span);
        when.into_iter().chain(texts).chain(words).chain(act).next().unwrap_or(test)
    }

    pub(super) fn check(&mut self, test: Span, catalog: &Catalog, out: &mut Diagnostics) {
        let place = self.span(test);
        if self.at.is_some() == self.after.is_some() {
            out.push(
                Diagnostic::new(codes::TEST_EVENT, place, "an event is either at a time or after a step")
                    .help("give one of `at: 12d` and `after: STEP`"),
            );
        }
        let one_of =
            "`signal`, `approve`, `reject`, `cancel: true`, `do`, `crash: true`, `resolve` or `resume: true`";
        match self.happens() {
            None => out.push(
                Diagnostic::new(codes::TEST_EVENT, place, "an event is exactly one thing")
                    .help(format!("give one of {one_of}; write a second event for a second thing")),
            ),
            Some(Happens::Resolve { step, .. }) if self.applied.is_none() => out.push(
                Diagnostic::new(codes::TEST_EVENT, step.span, "did it happen or not?")
                    .help("add `applied: true` or `applied: false`"),
            ),
            Some(happens) => {
                if let Some((span, message)) = self.stray(happens) {
                    out.push(
                        Diagnostic::new(codes::TEST_EVENT, span, message)
                            .help("remove it, or write a second event"),
                    );
                }
            }
        }
        if let Some(call) = &mut self.act {
            call.check(false, catalog, out);
        }
    }
}

impl Call {
    /// Compares the call with what the action takes. `reads`: only a reading action will do.
    pub(super) fn check(&mut self, reads: bool, catalog: &Catalog, out: &mut Diagnostics) {
        let Some(spec) = catalog.actions.get(self.uses.as_str()) else {
            let message = format!("there is no action {}", quoted(&self.uses));
            let diagnostic = Diagnostic::new(codes::TEST_ACTION, self.uses.span, message);
            out.push(match nearest(&self.uses, catalog.actions.keys().copied()) {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => diagnostic.help("`farrier actions` lists them"),
            });
            return;
        };
        if reads != is_reading(spec) {
            let (message, help) = if reads {
                ("looks at nothing: it changes the world", "look with an action that only reads")
            } else {
                ("changes nothing", "`do` changes the world; look at it with `expect: { world: … }`")
            };
            let message = format!("{} {message}", quoted(&self.uses));
            out.push(Diagnostic::new(codes::TEST_ACTION, self.uses.span, message).help(help));
        }
        let nothing = Node { span: self.uses.span, kind: NodeKind::Map(Vec::new()) };
        let with = self.with.as_ref().unwrap_or(&nothing);
        if let Some(input) = check_schema(with, &spec.input, &mut NoHooks, out).and_then(constant) {
            self.input = input;
        }
    }
}

fn is_reading(spec: &ActionSpec) -> bool {
    spec.effect == Effect::Read
}
