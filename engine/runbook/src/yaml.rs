//! YAML text → [`Node`]: a tree that knows where each part was written and how, and nothing of types.
//!
//! YAML is only a carrier here: one document, no anchors, aliases, tags, merge keys or duplicate keys, keys that are
//! text. What is not allowed is reported with a code of its own; reading goes on where a sensible tree remains, so that
//! the other mistakes of the file are found too.
//!
//! **Rule:** text from anybody is safe to parse. The size, the depth and the number of nodes are limited, and no
//! function recurses deeper than [`MAX_DEPTH`].

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use farrier_model::{Text, Value};
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StructureStyle};

use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, FileId, Span, is_control, quoted};

/// The largest file, in bytes. A larger one is refused unread.
pub const MAX_BYTES: usize = 1 << 20;
/// How deep lists and maps may stand in each other.
pub const MAX_DEPTH: usize = 32;
/// How many lists, maps, keys and scalars one file may have.
pub const MAX_NODES: usize = 200_000;
/// Maps with more keys than this find duplicates by hashing.
const SMALL_MAP: usize = 16;

/// One part of a file.
#[derive(Clone, PartialEq)]
pub struct Node {
    /// Where it stands, quotes included.
    pub span: Span,
    /// What it is.
    pub kind: NodeKind,
}

/// What a [`Node`] is.
#[derive(Clone, PartialEq)]
pub enum NodeKind {
    /// Text that has no type yet.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A map, in file order, keys unique.
    Map(Vec<(Key, Node)>),
    /// Something that was reported and left out; no check looks at it again.
    Broken,
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The text.
    pub text: Text,
    /// Where it stands, quotes included.
    pub span: Span,
}

/// The text of a scalar, and how it was written.
#[derive(Clone, PartialEq)]
pub struct Scalar {
    /// The text, with escapes and folding resolved.
    pub text: Text,
    /// Written without quotes and not as a block: only such text can be a number, a truth value or null.
    pub plain: bool,
    offsets: Offsets,
}

/// Maps bytes of a scalar's text to bytes of the file.
#[derive(Clone, PartialEq)]
enum Offsets {
    /// The text stands in the file as it is, from this byte.
    Same(u32),
    /// From each byte of the text, the byte of the file; in between, one for one.
    Pieces(Box<[(u32, u32)]>),
}

impl Node {
    /// The text and whether it is plain, if this is a scalar.
    pub fn as_scalar(&self) -> Option<&Scalar> {
        match &self.kind {
            NodeKind::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// The text, if this is a scalar.
    pub fn as_text(&self) -> Option<&Text> {
        self.as_scalar().map(|scalar| &scalar.text)
    }

    /// The items, if this is a list.
    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.kind {
            NodeKind::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries, if this is a map.
    pub fn as_map(&self) -> Option<&[(Key, Node)]> {
        match &self.kind {
            NodeKind::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value under `key`, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, value)| value)
    }

    /// The key with its place and the value, if this is a map that has it.
    pub fn entry(&self, key: &str) -> Option<&(Key, Node)> {
        self.as_map()?.iter().find(|(known, _)| &*known.text == key)
    }

    /// Whether this is `null`, `~` or nothing at all.
    pub fn is_null(&self) -> bool {
        self.as_scalar().is_some_and(Scalar::is_null)
    }

    /// What it is, as messages call it.
    pub fn describe(&self) -> String {
        match &self.kind {
            NodeKind::Scalar(scalar) if scalar.is_null() => "nothing".into(),
            NodeKind::Scalar(scalar) if scalar.text.is_empty() => "an empty text".into(),
            NodeKind::Scalar(scalar) => quoted(&scalar.text),
            NodeKind::List(_) => "a list".into(),
            NodeKind::Map(_) => "a map".into(),
            NodeKind::Broken => "something else".into(),
        }
    }

    /// The place of `range`, bytes within the scalar's text. Exact, except inside the whitespace that folding changed.
    /// The node's own place when it is no scalar.
    pub fn offset_span(&self, range: Range<usize>) -> Span {
        let Some(scalar) = self.as_scalar() else { return self.span };
        let start = scalar.offsets.of(range.start as u32);
        // The end belongs to the byte before it: the next byte may stand on another line.
        let end = if range.end > range.start { scalar.offsets.of(range.end as u32 - 1) + 1 } else { start };
        if start > self.span.end || end > self.span.end {
            return self.span;
        }
        Span { file: self.span.file, start, end: end.max(start) }
    }

    /// The value by the rules of YAML 1.2 for text without a declared type, with fewer surprises: only `true` and
    /// `false` are truth values, only decimal digits are numbers, and `012` stays text.
    pub fn to_value(&self) -> Value {
        match &self.kind {
            NodeKind::Scalar(scalar) => scalar.to_value(),
            NodeKind::List(items) => Value::list(items.iter().map(Node::to_value).collect()),
            NodeKind::Map(entries) => {
                Value::map(entries.iter().map(|(key, value)| (key.text.clone(), value.to_value())))
            }
            NodeKind::Broken => Value::Null,
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            NodeKind::Scalar(scalar) if scalar.plain => write!(f, "{}", scalar.text),
            NodeKind::Scalar(scalar) => write!(f, "{:?}", scalar.text),
            NodeKind::List(items) => f.debug_list().entries(items).finish(),
            NodeKind::Map(entries) => {
                f.debug_map().entries(entries.iter().map(|(key, value)| (&key.text, value))).finish()
            }
            NodeKind::Broken => f.write_str("(broken)"),
        }
    }
}

impl Scalar {
    /// Whether this is `null`, `~` or nothing at all.
    pub fn is_null(&self) -> bool {
        self.plain && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL")
    }

    /// The truth value, if it is one.
    pub fn to_bool(&self) -> Option<bool> {
        match &*self.text {
            "true" if self.plain => Some(true),
            "false" if self.plain => Some(false),
            _ => None,
        }
    }

    /// The whole number, if it is one: decimal digits without a leading zero, in 64 bits.
    pub fn to_int(&self) -> Option<i64> {
        (self.plain && is_int(&self.text)).then(|| self.text.parse().ok()).flatten()
    }

    /// The number, if it is one.
    pub fn to_float(&self) -> Option<f64> {
        (self.plain && (is_int(&self.text) || is_float(&self.text)))
            .then(|| self.text.parse().ok())
            .flatten()
            .filter(|number: &f64| number.is_finite())
    }

    /// Text that stands in no file.
    pub(crate) fn of(text: Text, plain: bool) -> Scalar {
        Scalar { text, plain, offsets: Offsets::Same(0) }
    }

    /// The same text as if it had been written without quotes.
    pub(crate) fn without_quotes(&self) -> Scalar {
        Scalar { plain: true, ..self.clone() }
    }

    /// See [`Node::to_value`].
    pub fn to_value(&self) -> Value {
        if self.is_null() {
            Value::Null
        } else if let Some(flag) = self.to_bool() {
            Value::Bool(flag)
        } else if let Some(number) = self.to_int() {
            Value::Int(number)
        } else if let Some(number) = self.to_float().filter(|_| !is_int(&self.text)) {
            Value::Float(number)
        } else {
            Value::Text(self.text.clone())
        }
    }
}

/// `-12`, but not `012`.
fn is_int(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'))
}

/// `1.5`, `.5`, `1e9`, but not `01.5` or `1`.
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (text, None),
    };
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if exponent.is_some_and(|exponent| exponent.is_empty() || !digits(exponent)) {
        return false;
    }
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    (mantissa.contains('.') || exponent.is_some())
        && !(whole.is_empty() && fraction.is_empty())
        && (whole.len() <= 1 || !whole.starts_with('0'))
        && digits(whole)
        && digits(fraction)
}

impl Offsets {
    fn of(&self, at: u32) -> u32 {
        match self {
            Offsets::Same(start) => start + at,
            Offsets::Pieces(pieces) => {
                let index = pieces.partition_point(|(from, _)| *from <= at).saturating_sub(1);
                pieces.get(index).map_or(0, |(from, start)| start + at.saturating_sub(*from))
            }
        }
    }

    /// Walks `raw`, the text between the quotes or after the header, beside `text`, which it was read as.
    fn align(raw: &str, base: usize, text: &str, style: ScalarStyle) -> Offsets {
        if raw.starts_with(text) {
            return Offsets::Same(base as u32);
        }
        let mut pieces: Vec<(u32, u32)> = Vec::new();
        let mut note = |at: usize, raw_at: usize| {
            let file_at = (base + raw_at) as u32;
            let follows = pieces.last().is_some_and(|(from, start)| start + (at as u32 - from) == file_at);
            if !follows {
                pieces.push((at as u32, file_at));
            }
        };
        let (mut at, mut raw_at) = (0, 0);
        while let (Some(c), Some(r)) = (text[at..].chars().next(), raw[raw_at..].chars().next()) {
            if r == '\\' && style == ScalarStyle::DoubleQuoted {
                let (raw_len, produces) = escape(&raw[raw_at..]);
                if produces {
                    note(at, raw_at);
                    at += c.len_utf8();
                }
                raw_at += raw_len;
            } else if r == '\''
                && c == r
                && style == ScalarStyle::SingleQuoted
                && raw[raw_at + 1..].starts_with('\'')
            {
                note(at, raw_at);
                at += 1;
                raw_at += 2;
            } else if c == r {
                note(at, raw_at);
                at += c.len_utf8();
                raw_at += c.len_utf8();
            } else if r.is_whitespace() {
                raw_at += r.len_utf8();
            } else if c.is_whitespace() {
                // A line end that was read as a space has the place of what follows it, and of a wide character that would be a part.
                let before = raw_at.saturating_sub(1);
                note(at, if r.len_utf8() > 1 && raw.is_char_boundary(before) { before } else { raw_at });
                at += c.len_utf8();
            } else {
                break;
            }
        }
        Offsets::Pieces(pieces.into())
    }
}

/// Length of the escape at the start of `raw`, and whether it produces a character.
fn escape(raw: &str) -> (usize, bool) {
    let digits = match raw.as_bytes().get(1) {
        Some(b'x') => 2,
        Some(b'u') => 4,
        Some(b'U') => 8,
        Some(b'\r' | b'\n') => {
            let rest = raw[1..].trim_start_matches('\r');
            let rest = rest.strip_prefix('\n').unwrap_or(rest).trim_start_matches([' ', '\t']);
            return (raw.len() - rest.len(), false);
        }
        _ => 0,
    };
    let mut len = (2 + digits).min(raw.len());
    // A pair of surrogates is one character.
    let high = digits == 4
        && raw
            .get(2..4)
            .is_some_and(|hex| matches!(hex.to_ascii_lowercase().as_str(), "d8" | "d9" | "da" | "db"));
    if high && raw.get(6..8) == Some("\\u") {
        len = 12.min(raw.len());
    }
    while !raw.is_char_boundary(len) {
        len += 1;
    }
    (len, true)
}

/// Reads one file. Reports what is wrong with it as YAML; returns the tree when one remains, which may have
/// [`NodeKind::Broken`] parts. `bytes` must be those that `file` was made of.
pub fn parse(file: FileId, bytes: &[u8], out: &mut Diagnostics) -> Option<Node> {
    let here = |range: Range<usize>| Span::new(file, range);
    if bytes.len() > MAX_BYTES {
        let mib = bytes.len().div_ceil(1 << 20);
        out.push(
            Diagnostic::new(
                codes::FILE_TOO_LARGE,
                here(0..0),
                format!("the file has {mib} MiB, and 1 MiB is the limit"),
            )
            .help("split it, or move data out of it"),
        );
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let message =
                format!("the byte {:#04x} is not UTF-8", bytes.get(at).copied().unwrap_or_default());
            let help = if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
                "the file is UTF-16; save it as UTF-8"
            } else {
                "save the file as UTF-8"
            };
            out.push(Diagnostic::new(codes::NOT_UTF8, here(at..at + 1), message).help(help));
            return None;
        }
    };
    let base = if text.starts_with('\u{FEFF}') {
        out.push(
            Diagnostic::new(codes::BYTE_ORDER_MARK, here(0..3), "the file begins with a byte order mark")
                .help("save it as UTF-8 without a byte order mark"),
        );
        3
    } else {
        0
    };
    if report_control_characters(file, text, base, out) {
        return None;
    }
    Builder { file, text, base, out, stack: Vec::new(), root: None, nodes: 0 }.run()
}

/// Reports characters that no editor shows. True when there are any.
fn report_control_characters(file: FileId, text: &str, base: usize, out: &mut Diagnostics) -> bool {
    let hidden = |c: char| is_control(c) && !matches!(c, '\t' | '\n' | '\r') || c == '\u{FEFF}';
    // Bytes are enough to see that a file has nothing but printable ASCII.
    if text[base..].bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')) {
        return false;
    }
    let found: Vec<(usize, char)> =
        text.char_indices().skip_while(|(at, _)| *at < base).filter(|(_, c)| hidden(*c)).take(20).collect();
    for (at, c) in &found {
        let message = format!("the character U+{:04X} does not show", u32::from(*c));
        out.push(
            Diagnostic::new(codes::CONTROL_CHARACTER, Span::new(file, *at..at + c.len_utf8()), message)
                .help(format!("remove it, or write it as \"\\u{:04X}\" in double quotes", u32::from(*c))),
        );
    }
    !found.is_empty()
}

/// Makes the tree from the parser's events. Its own stack, so no recursion.
struct Builder<'a> {
    file: FileId,
    text: &'a str,
    /// Where the text begins that the parser sees.
    base: usize,
    out: &'a mut Diagnostics,
    stack: Vec<Frame>,
    root: Option<Node>,
    nodes: usize,
}

struct Frame {
    start: usize,
    flow: bool,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, index: HashMap<Text, Span>, key: PendingKey, broken: bool },
}

enum PendingKey {
    None,
    Good(Key),
    /// Reported; its value is read and dropped.
    Bad,
}

/// Reading cannot go on; the reason is reported.
struct Stop;

impl Builder<'_> {
    fn run(mut self) -> Option<Node> {
        let options = granit_parser::options! {
            emit_unresolved_aliases: true,
            emit_anchor_events: true,
            emit_comments: false,
            disallow_directives: true,
            flow_nesting_limit: MAX_DEPTH + 1,
            block_nesting_limit: MAX_DEPTH + 1,
        };
        let text = &self.text[self.base..];
        let mut documents = 0;
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    self.syntax_error(&error);
                    return None;
                }
            };
            if let Some(tag) = span.tag_span() {
                let place = self.span_of(&tag);
                self.out.push(
                    Diagnostic::new(codes::TAG, place, "YAML tags are not used here")
                        .help("remove it; if this is text that begins with `!`, put it in quotes"),
                );
            }
            if self.nodes > MAX_NODES {
                let place = self.span_of(&span);
                self.out.push(
                    Diagnostic::new(
                        codes::TOO_MANY_NODES,
                        place,
                        format!("the file has more than {MAX_NODES} values"),
                    )
                    .help("split it, or move data out of it"),
                );
                return None;
            }
            let place = self.span_of(&span);
            let result = match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        self.out.push(
                            Diagnostic::new(codes::SECOND_DOCUMENT, place, "a second document begins here")
                                .help("a file holds one document: remove the `---`, or split the file"),
                        );
                        Err(Stop)
                    } else {
                        Ok(())
                    }
                }
                Event::Anchor(_, name) => {
                    self.out.push(
                        Diagnostic::new(codes::ANCHOR, place, format!("the anchor {} is not used here", quoted(&format!("&{name}"))))
                            .help("write the value where it is needed, or use `vars:`; text that begins with `&` needs quotes"),
                    );
                    Ok(())
                }
                Event::Alias(_) | Event::UnresolvedAlias(_) => {
                    let name = quoted(self.out.text(place));
                    self.out.push(
                        Diagnostic::new(codes::ALIAS, place, format!("the alias {name} is not used here"))
                            .help(
                                "write the value out, or use `vars:`; text that begins with `*` needs quotes",
                            ),
                    );
                    self.deliver(Node { span: place, kind: NodeKind::Broken });
                    Ok(())
                }
                Event::Scalar(text, style, ..) => {
                    let node = self.scalar(&text, style, place);
                    self.deliver(node);
                    Ok(())
                }
                Event::SequenceStart(style, ..) => self.open(place, style, Content::List(Vec::new())),
                Event::MappingStart(style, ..) => self.open(
                    place,
                    style,
                    Content::Map {
                        entries: Vec::new(),
                        index: HashMap::new(),
                        key: PendingKey::None,
                        broken: false,
                    },
                ),
                Event::SequenceEnd | Event::MappingEnd => self.close(place),
                _ => Ok(()),
            };
            if result.is_err() {
                return None;
            }
        }
        let root = self.root.take();
        match root {
            Some(node) if !node.is_null() => Some(node),
            _ => {
                let at = Span::new(self.file, 0..0);
                self.out.push(Diagnostic::new(codes::EMPTY_FILE, at, "the file is empty"));
                None
            }
        }
    }

    fn span_of(&self, span: &granit_parser::Span) -> Span {
        let range = span.byte_range().unwrap_or(0..0);
        let len = self.text.len();
        Span::new(self.file, (range.start + self.base).min(len)..(range.end + self.base).min(len))
    }

    fn scalar(&self, text: &str, style: ScalarStyle, place: Span) -> Node {
        // The parser says `~` where nothing was written.
        let text = if style == ScalarStyle::Plain && place.start == place.end { "" } else { text };
        let raw = self.text.get(place.range()).unwrap_or_default();
        // The place of a block begins with its first line, not with the header.
        let skip = usize::from(matches!(style, ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted));
        let raw = raw.get(skip..).unwrap_or_default();
        let offsets = Offsets::align(raw, place.start as usize + skip, text, style);
        Node {
            span: place,
            kind: NodeKind::Scalar(Scalar { text: text.into(), plain: style == ScalarStyle::Plain, offsets }),
        }
    }

    fn open(&mut self, place: Span, style: StructureStyle, content: Content) -> Result<(), Stop> {
        self.nodes += 1;
        if self.stack.len() >= MAX_DEPTH {
            self.too_deep(place);
            return Err(Stop);
        }
        let flow = style == StructureStyle::Flow;
        self.stack.push(Frame { start: place.start as usize, flow, content });
        Ok(())
    }

    fn too_deep(&mut self, place: Span) {
        self.out.push(
            Diagnostic::new(
                codes::TOO_DEEP,
                place,
                format!("lists and maps stand in each other more than {MAX_DEPTH} deep"),
            )
            .help("name the inner parts: steps and `vars:` can hold them"),
        );
    }

    fn close(&mut self, place: Span) -> Result<(), Stop> {
        let Some(frame) = self.stack.pop() else { return Err(Stop) };
        let mut end = place.end as usize;
        let kind = match frame.content {
            Content::List(items) => {
                if let (Some(last), false) = (items.last(), frame.flow) {
                    end = last.span.end as usize;
                }
                NodeKind::List(items)
            }
            Content::Map { entries, broken, .. } => {
                if let (Some((key, last)), false) = (entries.last(), frame.flow) {
                    end = key.span.end.max(last.span.end) as usize;
                }
                if broken { NodeKind::Broken } else { NodeKind::Map(entries) }
            }
        };
        self.deliver(Node { span: Span::new(self.file, frame.start..end), kind });
        Ok(())
    }

    /// Gives a finished node to what it stands in.
    fn deliver(&mut self, node: Node) {
        self.nodes += 1;
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return;
        };
        match &mut frame.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, index, key, broken } => match std::mem::replace(key, PendingKey::None) {
                PendingKey::Good(key) => entries.push((key, node)),
                PendingKey::Bad => {}
                PendingKey::None => *key = check_key(node, entries, index, broken, self.out),
            },
        }
    }

    fn syntax_error(&mut self, error: &ScanError) {
        let mut at = (error.marker().byte_offset().unwrap_or(0) + self.base).min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let next =
            self.text[at..].chars().next().filter(|c| *c != '\n' && *c != '\r').map_or(0, char::len_utf8);
        let place = Span::new(self.file, at..at + next);
        let line_start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline);
        let line = &self.text[line_start..line_end];
        // A plain text that goes on after a tab is only noticed at its beginning, so the next line counts, too.
        let next_end = self.text[line_end..].char_indices().filter(|(_, c)| *c == '\n').nth(1);
        let both =
            &self.text[line_start..next_end.map_or(self.text.len(), |(newline, _)| line_end + newline)];
        let tab = both.split_inclusive('\n').scan(line_start, |start, line| {
            let begins = *start;
            *start += line.len();
            let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
            Some(line[..indent].find('\t').map(|tab| begins + tab))
        });
        if let Some(tab) = tab.flatten().next() {
            self.out.push(
                Diagnostic::new(
                    codes::TAB_INDENT,
                    Span::new(self.file, tab..tab + 1),
                    "a tab stands in the indentation",
                )
                .expected("spaces")
                .help("indent with spaces; most editors can convert the file"),
            );
            return;
        }
        match error.kind() {
            ErrorKind::RecursionLimitExceeded => return self.too_deep(place),
            kind if is_directive(kind) || line.starts_with('%') => {
                self.out.push(
                    Diagnostic::new(codes::DIRECTIVE, place, "YAML directives are not used here")
                        .help("remove the line that begins with `%`"),
                );
                return;
            }
            _ => {}
        }
        let mut diagnostic = Diagnostic::new(codes::SYNTAX, place, syntax_message(error.kind()));
        if let Some(help) = syntax_help(error.kind(), line) {
            diagnostic = diagnostic.help(help);
        }
        self.out.push(diagnostic);
    }
}

/// What becomes of a node that stands where a key must.
fn check_key(
    node: Node,
    entries: &[(Key, Node)],
    index: &mut HashMap<Text, Span>,
    broken: &mut bool,
    out: &mut Diagnostics,
) -> PendingKey {
    let NodeKind::Scalar(scalar) = node.kind else {
        if node.kind != NodeKind::Broken {
            out.push(
                Diagnostic::new(codes::KEY_NOT_TEXT, node.span, "a list or a map cannot be a key")
                    .expected("text"),
            );
        }
        return PendingKey::Bad;
    };
    if scalar.plain && scalar.text.is_empty() {
        out.push(
            Diagnostic::new(codes::KEY_NOT_TEXT, node.span, "a key is missing before `:`").expected("text"),
        );
        return PendingKey::Bad;
    }
    if scalar.plain && &*scalar.text == "<<" {
        out.push(
            Diagnostic::new(codes::MERGE_KEY, node.span, "merge keys are not used here")
                .help("write the keys out, so that the file says what it does"),
        );
        *broken = true;
        return PendingKey::Bad;
    }
    let key = Key { text: scalar.text, span: node.span };
    let first = if entries.len() < SMALL_MAP {
        entries.iter().find(|(known, _)| known.text == key.text).map(|(known, _)| known.span)
    } else {
        if index.is_empty() {
            index.extend(entries.iter().map(|(known, _)| (known.text.clone(), known.span)));
        }
        let first = index.get(&key.text).copied();
        index.entry(key.text.clone()).or_insert(key.span);
        first
    };
    if let Some(first) = first {
        out.push(
            Diagnostic::new(
                codes::DUPLICATE_KEY,
                key.span,
                format!("the key {} is given twice", quoted(&key.text)),
            )
            .label(first, "first given here")
            .help("remove one of them"),
        );
        return PendingKey::Bad;
    }
    PendingKey::Good(key)
}

fn is_directive(kind: &ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::DuplicateVersionDirective
            | ErrorKind::UnsupportedYamlMajorVersion
            | ErrorKind::DuplicateTagDirective
            | ErrorKind::MissingDocumentEndBeforeDirective
            | ErrorKind::InvalidDirectiveTerminator
            | ErrorKind::DirectiveDisallowed
            | ErrorKind::MissingDirectiveName
            | ErrorKind::InvalidDirectiveName
    )
}

fn syntax_message(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => {
            "a quote is not closed".into()
        }
        ErrorKind::UnclosedFlowCollection { open } => format!("this `{open}` is not closed"),
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            format!("`{open}` is closed with `{close}`")
        }
        ErrorKind::MisplacedFlowCollectionEnd => "this bracket closes nothing".into(),
        ErrorKind::ExpectedFlowMappingSeparator => "`,` or `}` is missing".into(),
        ErrorKind::ExpectedFlowSequenceSeparator => "`,` or `]` is missing".into(),
        ErrorKind::UnexpectedEofFlowSequence => "a `[` is not closed before the end of the file".into(),
        ErrorKind::UnexpectedEofFlowMapping | ErrorKind::UnexpectedEofImplicitFlowMapping => {
            "a `{` is not closed before the end of the file".into()
        }
        ErrorKind::MappingValueNotAllowed => "a `:` cannot stand here".into(),
        ErrorKind::ExpectedBlockMappingKey => "a key was expected here".into(),
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            "this line has no `:` after its key".into()
        }
        ErrorKind::UnexpectedCharacter { character } => format!("text cannot begin with `{character}`"),
        ErrorKind::InvalidIndentation => "the indentation fits no line above".into(),
        ErrorKind::UnknownQuotedScalarEscape => "this escape does not exist".into(),
        other => other.to_string(),
    }
}

fn syntax_help(kind: &ErrorKind, line: &str) -> Option<&'static str> {
    Some(match kind {
        ErrorKind::ExpectedFlowMappingSeparator
        | ErrorKind::ExpectedFlowSequenceSeparator
        | ErrorKind::MisplacedFlowCollectionEnd
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnclosedFlowCollection { .. }
        | ErrorKind::MismatchedFlowCollectionEnd { .. }
            if line.contains("${") =>
        {
            "inside `{ }` and `[ ]` an expression needs quotes: \"${ … }\""
        }
        ErrorKind::MappingValueNotAllowed => {
            "text that holds `: ` needs quotes; otherwise check the indentation"
        }
        ErrorKind::UnexpectedCharacter { .. } => "put the text in quotes",
        ErrorKind::ExpectedBlockMappingKey | ErrorKind::InvalidIndentation => {
            "indent it like the other keys of this map"
        }
        ErrorKind::InvalidQuotedScalarIndent => {
            "text in quotes goes on to this line: close the quote above, or indent this line"
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => "write `key: value`",
        ErrorKind::UnknownQuotedScalarEscape => "write `\\\\` for a backslash, or use single quotes",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Node, Diagnostics) {
        let mut out = Diagnostics::new();
        let file = out.add_file("test.yaml", text.as_bytes());
        let node = parse(file, text.as_bytes(), &mut out).unwrap_or_else(|| panic!("{}", out.render(false)));
        (node, out)
    }

    fn codes_of(bytes: &[u8]) -> Vec<&'static str> {
        let mut out = Diagnostics::new();
        let file = out.add_file("test.yaml", bytes);
        parse(file, bytes, &mut out);
        out.sorted().iter().map(|diagnostic| diagnostic.code.as_str()).collect()
    }

    #[test]
    fn plain_text_is_read_without_surprises() {
        for (text, expected) in [
            ("5", Value::Int(5)),
            ("-12", Value::Int(-12)),
            ("012", Value::text("012")),
            ("0", Value::Int(0)),
            ("0x10", Value::text("0x10")),
            ("1_000", Value::text("1_000")),
            ("1.10", Value::Float(1.1)),
            ("1e3", Value::Float(1000.0)),
            ("01.5", Value::text("01.5")),
            ("1.2.3", Value::text("1.2.3")),
            (".", Value::text(".")),
            ("-", Value::list(vec![Value::Null])),
            (".inf", Value::text(".inf")),
            ("true", Value::Bool(true)),
            ("True", Value::text("True")),
            ("yes", Value::text("yes")),
            ("no", Value::text("no")),
            ("\"5\"", Value::text("5")),
            ("'true'", Value::text("true")),
            ("[~, null]", Value::list(vec![Value::Null, Value::Null])),
            ("99999999999999999999", Value::text("99999999999999999999")),
            ("2026-01-02", Value::text("2026-01-02")),
            ("12:30", Value::text("12:30")),
        ] {
            // A very large number stays text rather than losing digits.
            let (node, out) = parsed(text);
            assert!(out.is_empty(), "{}", out.render(false));
            assert_eq!(node.to_value(), expected, "{text}");
        }
    }

    #[test]
    fn every_scalar_knows_the_bytes_of_its_parts() {
        // In each, `X` of the text must be found at the `X` of the file.
        for text in [
            "a: X",
            "a: äöX",
            "ä: 'it X'",
            "a: 'it''s X'",
            "a: \"b X\"",
            "a: \"\\u00e4\\t\\\\ X\"",
            "a: \"\\ud83d\\ude00 X\"",
            "a: \"one \\\n    X\"",
            "a: \"one\n    X\"",
            "a: one\n  two\n  X y",
            "a: one\r\n  two\r\n  X y\r\n",
            "a: |\n  one\n  X two\n",
            "a: |\n\n\n  one\n  X two\n",
            "a: |\r\n  öne\r\n\r\n  X two\r\n",
            "a: |\n  one\n    deeper X\n  two\n",
            "a: |2-\n    deeper X\n  two\n",
            "a: >-\n  one\n  two X\n\n  three\n",
            "a: >\n  one\n\n\n  two X\n",
            "a: {b: [c, 'd X']}",
            "- a:\n  - |\n    é\n    é X",
        ] {
            let (node, out) = parsed(text);
            assert!(out.is_empty(), "{}", out.render(false));
            let mut inner = &node;
            while inner.as_scalar().is_none() {
                inner = match &inner.kind {
                    NodeKind::List(items) => items.last().unwrap(),
                    NodeKind::Map(entries) => &entries.last().unwrap().1,
                    _ => panic!(),
                };
            }
            let at = inner.as_text().unwrap().find('X').unwrap_or_else(|| panic!("{inner:?}"));
            let span = inner.offset_span(at..at + 1);
            assert_eq!(out.text(span), "X", "{text:?} read as {:?}", inner.as_text());
            let found = out.text(inner.span);
            assert!(found.contains('X'), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn spans_cover_what_was_written() {
        let (node, out) =
            parsed("key: 'quo''ted' # note\nlist:\n  - one\n  - {two: [3, 4]}\n\n# end\nlast:\n  deep: 1\n");
        let spans: Vec<(&str, &str)> = node
            .as_map()
            .unwrap()
            .iter()
            .map(|(key, value)| (out.text(key.span), out.text(value.span)))
            .collect();
        assert_eq!(spans, [("key", "'quo''ted'"), ("list", "- one\n  - {two: [3, 4]}"), ("last", "deep: 1")]);
    }

    #[test]
    fn what_is_not_used_here_has_a_code_of_its_own() {
        for (text, expected) in [
            ("", vec!["E0107"]),
            ("# only a note\n", vec!["E0107"]),
            ("~", vec!["E0107"]),
            ("a: 1\n---\nb: 2\n", vec!["E0108"]),
            ("---\na: 1\n...\n", vec![]),
            ("a: &x 1\nb: *x\n", vec!["E0109", "E0110"]),
            ("a: *x\n", vec!["E0110"]),
            ("a: !secret x\n", vec!["E0111"]),
            ("a: !!str x\n", vec!["E0111"]),
            ("a: &x {b: 1}\nc: {<<: *x}\n", vec!["E0109", "E0112", "E0110"]),
            ("a: 1\nb: 2\na: 3\n", vec!["E0113"]),
            ("a: 1\n\"a\": 3\n", vec!["E0113"]),
            ("{a: 1}: b\n", vec!["E0114"]),
            ("? [a]\n: b\n", vec!["E0114"]),
            (": b\n", vec!["E0114"]),
            ("%YAML 1.2\n---\na: 1\n", vec!["E0117"]),
            ("a:\n\tb: 1\n", vec!["E0106"]),
            ("a:\n  b: 1\n\tc: 1\n", vec!["E0106"]),
            ("a: 'open\n", vec!["E0105"]),
            ("a: [1, 2\nb: 3\n", vec!["E0105"]),
            ("a: b: c\n", vec!["E0105"]),
            ("a: {b: ${ inputs.c }}\n", vec!["E0105"]),
            ("a: @b\n", vec!["E0105"]),
            ("a: \"\\q\"\n", vec!["E0105"]),
            ("a: b\n c: d\n", vec!["E0105"]),
            ("\u{FEFF}a: 1\nb: *x", vec!["E0103", "E0110"]),
            ("a: b\u{7}c\n", vec!["E0104"]),
            ("a: b\u{202E}c\n", vec!["E0104"]),
            ("a: b\u{FEFF}c\n", vec!["E0104"]),
            ("a: ünïcödé 😀\n", vec![]),
            ("a: \"\\u0007 is fine when written out\"\n", vec![]),
        ] {
            assert_eq!(codes_of(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(codes_of(b"a: \xFF\n"), ["E0102"]);
        assert_eq!(codes_of(b"\xFF\xFEa\0"), ["E0102"]);
    }

    #[test]
    fn hostile_files_end_early_and_quietly() {
        let deep_flow = "[".repeat(100_000);
        let deep_map = "{a: ".repeat(100_000);
        let deep_block: String =
            (0..5_000).fold(String::new(), |text, depth| text + &" ".repeat(depth % 150) + "a:\n");
        let deep_dashes = "- ".repeat(100_000);
        let nested: String = (0..100).fold(String::new(), |text, depth| text + &" ".repeat(depth) + "a:\n");
        for text in [deep_flow, deep_map, deep_dashes, nested] {
            assert_eq!(codes_of(text.as_bytes()), ["E0115"]);
        }
        assert!(!codes_of(deep_block.as_bytes()).is_empty());
        assert_eq!(codes_of(&vec![b'a'; 50 << 20]), ["E0101"]);
        assert_eq!(codes_of("- a\n".repeat(250_000).as_bytes()), ["E0116"]);

        let mut laughs = String::from("l0: &l0 [ha]\n");
        for level in 1..1000 {
            let below = level - 1;
            let line = format!("l{level}: &l{level} [*l{below}, *l{below}, *l{below}, *l{below}]\n");
            laughs.push_str(&line);
        }
        let found = codes_of(laughs.as_bytes());
        assert!(found.iter().all(|code| matches!(*code, "E0109" | "E0110")), "{found:?}");
        assert!(found.len() >= 1000);
    }

    #[test]
    fn the_deepest_allowed_tree_is_read() {
        let text = format!("{}1{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
        assert_eq!(codes_of(text.as_bytes()), Vec::<&str>::new());
        let text = format!("[{text}]");
        assert_eq!(codes_of(text.as_bytes()), ["E0115"]);
    }

    #[test]
    fn duplicates_are_found_in_large_maps() {
        let mut text: String =
            (0..1000).fold(String::new(), |text, number| text + &format!("k{number}: 1\n"));
        text.push_str("k3: 1\nk999: 1\n");
        assert_eq!(codes_of(text.as_bytes()), ["E0113", "E0113"]);
    }
}
