//! Colours, used only where they help and only on terminals that want them.

use std::io::IsTerminal;

/// Whether and how to colour one stream.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// For standard output.
    pub fn stdout() -> Style {
        Style { colour: wanted(std::io::stdout().is_terminal()) }
    }

    /// For standard error.
    pub fn stderr() -> Style {
        Style { colour: wanted(std::io::stderr().is_terminal()) }
    }

    /// Without colours.
    pub fn plain() -> Style {
        Style { colour: false }
    }

    /// Whether colours are on.
    pub fn has_colour(self) -> bool {
        self.colour
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Something that comes into being, or went well.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Something that differs, or needs a look.
    pub fn warn(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something that goes away, or went wrong.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Something secondary.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Something to begin with.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// `NO_COLOR` (see no-color.org) and a dumb terminal turn colours off.
fn wanted(terminal: bool) -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    terminal && !no_colour && !dumb
}
