//! The output of a command, cut in the middle when it is too long: the beginning says what it did, the end how it went.

use std::collections::VecDeque;

/// Bytes as they arrive. Holds at most twice `limit`.
#[derive(Debug, Clone)]
pub(crate) struct Capture {
    limit: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl Capture {
    /// Keeps the first `limit` bytes and the last.
    pub(crate) fn new(limit: usize) -> Capture {
        Capture { limit, head: Vec::new(), tail: VecDeque::new(), left_out: 0 }
    }

    /// Adds what came next.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(self.limit - self.head.len()));
        self.head.extend_from_slice(first);
        // Of one large piece only the end can stay, so the rest is not even copied.
        let (skipped, rest) = rest.split_at(rest.len().saturating_sub(self.limit));
        self.tail.extend(rest);
        let surplus = self.tail.len().saturating_sub(self.limit);
        self.tail.drain(..surplus);
        self.left_out += (skipped.len() + surplus) as u64;
    }

    /// Whether something is left out.
    pub(crate) fn is_cut(&self) -> bool {
        self.left_out > 0
    }

    /// The text, with a line that says how much is left out. Bytes that are not UTF-8 become `�`.
    pub(crate) fn text(mut self) -> String {
        let kept = self.head.len() + self.tail.len();
        let tail = self.tail.make_contiguous();
        if self.left_out == 0 {
            self.head.extend_from_slice(tail);
            return match String::from_utf8(self.head) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            };
        }
        let (head, tail) = (whole_end(&self.head), whole_start(tail));
        let left_out = self.left_out as usize + kept - head.len() - tail.len();
        let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
        format!("{head}\n… {left_out} bytes left out …\n{tail}")
    }
}

/// Without a character at the end that the cut went through.
fn whole_end(bytes: &[u8]) -> &[u8] {
    let starts = bytes.iter().rev().take(4).position(|byte| byte & 0xC0 != 0x80);
    let Some(from_end) = starts else { return bytes };
    let start = bytes.len() - 1 - from_end;
    let wanted = match bytes[start] {
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF7 => 4,
        _ => 1,
    };
    if bytes.len() - start < wanted { &bytes[..start] } else { bytes }
}

/// Without the rest of a character that the cut went through.
fn whole_start(bytes: &[u8]) -> &[u8] {
    let rest = bytes.iter().take(3).take_while(|byte| *byte & 0xC0 == 0x80).count();
    &bytes[rest..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(limit: usize, pieces: &[&[u8]]) -> String {
        let mut capture = Capture::new(limit);
        for piece in pieces {
            capture.push(piece);
        }
        capture.text()
    }

    #[test]
    fn long_output_keeps_both_ends() {
        for (pieces, expected) in [
            (&[b"".as_slice()][..], ""),
            (&[b"abc", b"def"], "abcdef"),
            (&[b"abcd", b"efgh"], "abcdefgh"),
            (&[b"abcdefghi"], "abcd\n… 1 bytes left out …\nfghi"),
            (&[b"abcdefghijklmnop"], "abcd\n… 8 bytes left out …\nmnop"),
            (&[b"ab", b"cdefg", b"hijkl", b"mnop"], "abcd\n… 8 bytes left out …\nmnop"),
            (&["abc🦊 and 🦊xyz".as_bytes()], "abc\n… 13 bytes left out …\nxyz"),
            (&[b"ab\xff"], "ab�"),
        ] {
            assert_eq!(cut(4, pieces), expected);
        }
    }

    proptest! {
        /// However the pieces fall, the result is that of one piece, and nothing is lost that fits.
        #[test]
        fn pieces_do_not_matter(text in "\\PC{0,60}", limit in 1..40_usize, step in 1..9_usize) {
            let whole = cut(limit, &[text.as_bytes()]);
            prop_assert_eq!(&cut(limit, &text.as_bytes().chunks(step).collect::<Vec<_>>()), &whole);
            if text.len() <= 2 * limit {
                prop_assert_eq!(whole, text);
            } else {
                prop_assert!(!whole.contains('�') || text.contains('�'));
            }
        }
    }
}
