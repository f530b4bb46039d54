//! `mail.send`.

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use lettre::Address;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::letter::{Draft, People};
use crate::target::Mail;

/// Sends a mail.
///
/// A plan shows it whole. When the connection ends after the text was sent and before the server said yes, nobody can
/// tell whether it will arrive; the run then waits for a person. Its `Message-ID` is made of the run and the step, so the
/// server's log tells.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Send {
    /// The way to send mail.
    target: Target<Mail>,
    /// Names that the environment knows, and addresses.
    to: Vec<FreeText>,
    /// The same, for those who get a copy.
    #[serde(default)]
    cc: Vec<FreeText>,
    /// One line.
    subject: FreeText,
    /// The text.
    text: FreeText,
}

/// The mail that was sent.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Sent {
    /// What it can be found by.
    message_id: String,
    /// The addresses that it went to.
    to: Vec<String>,
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

impl Send {
    fn draft(&self, people: &People) -> Result<Draft, Failure> {
        fn plain(texts: &[FreeText]) -> Vec<&str> {
            texts.iter().map(|text| text.0.as_str()).collect()
        }
        people.draft(&plain(&self.to), &plain(&self.cc), &self.subject.0, &self.text.0)
    }

    fn change(people: &People, draft: &Draft) -> Change {
        let list =
            |addresses: &[Address]| Value::list(texts(addresses).into_iter().map(Value::text).collect());
        let mut after = vec![("from", Value::text(people.from.to_string())), ("to", list(&draft.to))];
        if !draft.cc.is_empty() {
            after.push(("cc", list(&draft.cc)));
        }
        after.push(("subject", Value::text(draft.subject.as_str())));
        after.push(("text", Value::text(draft.text.as_str())));
        Change {
            object: format!("mail to {}: {}", texts(&draft.to).join(", "), draft.subject).into(),
            kind: ChangeKind::Send,
            before: Value::Null,
            after: Value::map(after),
            fingerprint: None,
        }
    }
}

impl Action for Send {
    const NAME: &'static str = "mail.send";
    const EFFECT: Effect = Effect::Once;
    const RISK: Risk = Risk::Recoverable;
    const EXAMPLE: &'static str = "\
tell:
  uses: mail.send
  with:
    target: post
    to: [toolforge-admins]
    subject: '${ run.title }: done'
    text: |
      The run ${ run.id } has ended well.
  undo: none
";
    type Output = Sent;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Sent>, Failure> {
        let reader = cx.reader(&self.target).await?;
        let draft = self.draft(&reader.people).map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Planned::described(vec![Send::change(&reader.people, &draft)]))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Sent, Failure> {
        let writer = cx.writer(&self.target).await?;
        let sent = async {
            let draft = self.draft(&writer.people)?;
            if *changes != [Send::change(&writer.people, &draft)] {
                return Err(Failure::new(FailureKind::Drift, "the mail is not the one that was planned"));
            }
            let node = cx.node();
            let letter =
                writer.people.letter(&draft, &node.effect_id, &node.run.to_string(), writer.now.get())?;
            writer.outbox.deliver(&letter).await?;
            Ok(Sent { message_id: writer.people.message_id(&node.effect_id), to: texts(&letter.to) })
        };
        sent.await.map_err(|failure| failure.at(self.target.alias()))
    }
}
