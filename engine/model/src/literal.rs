//! Text of another language with `$name` parameters: SQL, LDAP filters, PromQL, scripts.
//!
//! The text is fixed by the author; values enter only as parameters, which the action binds or quotes in that
//! language's own way. `$$` is a dollar sign; a `$` that no letter or underscore follows stands for itself.

use crate::value::Text;

/// A stretch of the author's text, or the name of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// To be used as it stands.
    Text(Text),
    /// To be replaced by the bound or quoted value of `params.NAME`.
    Param(Text),
}

/// Cuts `text` into pieces. Never fails: every text is a literal.
pub fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let name_len = after
            .char_indices()
            .find(|(i, c)| !(c.is_ascii_alphabetic() || *c == '_' || (*i > 0 && c.is_ascii_digit())))
            .map_or(after.len(), |(i, _)| i);
        if let Some(after) = after.strip_prefix('$') {
            plain.push('$');
            rest = after;
        } else if name_len == 0 {
            plain.push('$');
            rest = after;
        } else {
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(Piece::Param(after[..name_len].into()));
            rest = &after[name_len..];
        }
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain.into()));
    }
    pieces
}

/// The names of the parameters in `text`, each once, in order of first use.
pub fn params(text: &str) -> Vec<Text> {
    let mut names: Vec<Text> = Vec::new();
    for piece in pieces(text) {
        if let Piece::Param(name) = piece
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_and_names_are_told_apart() {
        assert_eq!(
            params("(&(cn=$project.*)(x=$$y)(z=$1)$_a2)"),
            vec![Text::from("project"), Text::from("_a2")]
        );
        assert_eq!(pieces("a$$b$"), vec![Piece::Text("a$b$".into())]);
    }
}
