//! `farrier explain`: the page of an error code.

use clap::Args;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render;

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The code, such as `E0302`.
    code: String,
}

impl Explain {
    pub(super) fn run(&self, _: &App) -> Result<Exit, Problem> {
        let page = farrier_runbook::explain(&self.code.to_uppercase()).ok_or_else(|| {
            Problem::Usage(format!(
                "there is no error code `{}`; codes look like `E0302` and stand beside each mistake",
                self.code
            ))
        })?;
        render::line(page.trim_end())?;
        Ok(Exit::Ok)
    }
}
