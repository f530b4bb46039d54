//! [`Diagnostic`]: one mistake in an authored file, with its code, its place, what was expected and how to fix it.
//! [`Diagnostics`]: all of them, with the texts they are about.
//!
//! Problems are pushed in any order; they are shown by file and place, each once.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::json;

use crate::codes::Code;

/// One authored file.
#[derive(Debug, Clone)]
pub struct Source {
    /// As shown to people.
    pub path: String,
    /// The text; empty when the file is too large to be read.
    pub text: Arc<str>,
}

impl Source {
    /// A file as it was read.
    ///
    /// # Errors
    /// The file is too large or not UTF-8: the diagnostics say so.
    pub fn from_bytes(path: impl Into<String>, bytes: &[u8]) -> Result<Source, Diagnostics> {
        let path = path.into();
        if bytes.len() <= crate::yaml::MAX_BYTES
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return Ok(Source { path, text: text.into() });
        }
        let mut out = Diagnostics::new();
        let file = out.add_file(path, bytes);
        crate::yaml::parse(file, bytes, &mut out);
        Err(out)
    }
}

/// A file of a [`Diagnostics`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FileId(pub u32);

/// A stretch of a file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// The first byte.
    pub start: u32,
    /// The byte after the last.
    pub end: u32,
}

impl Span {
    /// A stretch of `file`.
    pub fn new(file: FileId, range: Range<usize>) -> Span {
        Span { file, start: range.start as u32, end: range.end.max(range.start) as u32 }
    }

    /// The bytes.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used and is probably not what was meant.
    Warning,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Diagnostic {
    /// Which mistake.
    pub code: Code,
    /// Error unless said otherwise.
    pub severity: Severity,
    /// Where.
    pub span: Span,
    /// A lower-case fragment.
    pub message: String,
    /// What would be right here, in a few words; shown at the place.
    pub expected: Option<String>,
    /// The next step.
    pub help: Option<String>,
    /// Other places that matter.
    pub labels: Vec<(Span, String)>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn new(code: Code, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            code,
            severity: Severity::Error,
            span,
            message: message.into(),
            expected: None,
            help: None,
            labels: Vec::new(),
        }
    }

    /// Only a warning.
    pub fn warning(mut self) -> Diagnostic {
        self.severity = Severity::Warning;
        self
    }

    /// Adds what would be right here.
    pub fn expected(mut self, expected: impl Into<String>) -> Diagnostic {
        self.expected = Some(expected.into());
        self
    }

    /// Adds the next step.
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// Adds another place.
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Diagnostic {
        self.labels.push((span, text.into()));
        self
    }
}

/// Files and what is wrong with them.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    sources: Vec<Source>,
    list: Vec<Diagnostic>,
}

/// A file with more mistakes than this shows the first ones and a count.
const SHOWN_PER_FILE: usize = 100;
/// Nobody gets more than this for one file.
const KEPT_PER_FILE: usize = 1000;
/// Lines longer than this are not quoted.
const LONGEST_LINE: usize = 2000;
/// Labels farther than this from the place get a snippet of their own.
const FAR: usize = 16 << 10;

impl Diagnostics {
    /// Nothing yet.
    pub fn new() -> Diagnostics {
        Diagnostics::default()
    }

    /// Adds a file. Text that is not UTF-8 is kept readable up to the wrong byte; a file above the size limit is kept
    /// by name alone. [`crate::parse`] reports both.
    pub fn add_file(&mut self, path: impl Into<String>, bytes: &[u8]) -> FileId {
        let text =
            if bytes.len() > crate::yaml::MAX_BYTES { "".into() } else { String::from_utf8_lossy(bytes) };
        self.add_source(Source { path: path.into(), text: text.into() })
    }

    /// Adds a file.
    pub fn add_source(&mut self, source: Source) -> FileId {
        self.sources.push(source);
        FileId(self.sources.len() as u32 - 1)
    }

    /// A file.
    pub fn source(&self, file: FileId) -> Option<&Source> {
        self.sources.get(file.0 as usize)
    }

    /// The text at a place.
    pub fn text(&self, span: Span) -> &str {
        self.source(span.file).and_then(|source| source.text.get(span.range())).unwrap_or_default()
    }

    /// Adds a mistake.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    /// Adds the files and mistakes of another collection after those of this one.
    pub fn append(&mut self, other: Diagnostics) {
        let base = self.sources.len() as u32;
        self.sources.extend(other.sources);
        self.list.extend(other.list.into_iter().map(|mut diagnostic| {
            diagnostic.span.file.0 += base;
            diagnostic.labels.iter_mut().for_each(|(span, _)| span.file.0 += base);
            diagnostic
        }));
    }

    /// How many were pushed.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Whether one of them is an error in `file`.
    pub fn has_errors_in(&self, file: FileId) -> bool {
        self.list
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error && diagnostic.span.file == file)
    }

    /// Forgets everything pushed since there were `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    /// The same files with nothing wrong yet, for a part of the work that is done beside others.
    pub(crate) fn of_same_files(&self) -> Diagnostics {
        Diagnostics { sources: self.sources.clone(), list: Vec::new() }
    }

    /// Adds what was found by a part of the work on the same files.
    pub(crate) fn extend(&mut self, part: Diagnostics) {
        self.list.extend(part.list);
    }

    /// Takes what was pushed since there were `len`.
    pub(crate) fn split_off(&mut self, len: usize) -> Vec<Diagnostic> {
        self.list.split_off(len)
    }

    /// Each once, by file and place; of a file with very many, only the first thousand.
    pub fn sorted(&self) -> Vec<&Diagnostic> {
        let mut seen = HashSet::new();
        let mut list: Vec<&Diagnostic> =
            self.list.iter().filter(|diagnostic| seen.insert(*diagnostic)).collect();
        list.sort_by_key(|diagnostic| (diagnostic.span, diagnostic.code));
        let mut counts = vec![0_usize; self.sources.len()];
        list.retain(|diagnostic| {
            counts.get_mut(diagnostic.span.file.0 as usize).is_none_or(|count| {
                *count += 1;
                *count <= KEPT_PER_FILE
            })
        });
        list
    }

    /// Line and column of a byte, both from 1, columns in characters.
    pub fn position(&self, file: FileId, byte: u32) -> (usize, usize) {
        let text = self.source(file).map_or("", |source| &source.text);
        let mut end = text.len().min(byte as usize);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &text[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
    }

    /// The report for people.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        let mut shown = 0;
        let mut file = None;
        let sorted = self.sorted();
        for (index, diagnostic) in sorted.iter().enumerate() {
            if file != Some(diagnostic.span.file) {
                file = Some(diagnostic.span.file);
                shown = 0;
            }
            shown += 1;
            if shown <= SHOWN_PER_FILE {
                text.push_str(renderer.render(&self.report(diagnostic)).trim_end());
                text.push_str("\n\n");
            } else if sorted.get(index + 1).is_none_or(|next| Some(next.span.file) != file) {
                let path = self.source(diagnostic.span.file).map_or("", |source| &source.path);
                let more = shown - SHOWN_PER_FILE;
                text.push_str(path);
                text.push_str(": and ");
                text.push_str(&more.to_string());
                text.push_str(" more\n\n");
            }
        }
        text
    }

    fn report<'a>(&'a self, diagnostic: &'a Diagnostic) -> Vec<Group<'a>> {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(printable(&diagnostic.message)).id(diagnostic.code.as_str());
        let mut group = Group::with_title(title);
        let near = |label: &&(Span, String)| {
            label.0.file == diagnostic.span.file && label.0.start.abs_diff(diagnostic.span.start) < FAR as u32
        };
        let mut marks =
            vec![(diagnostic.span, diagnostic.expected.as_deref().map(expected), AnnotationKind::Primary)];
        let same = diagnostic.labels.iter().filter(near);
        marks.extend(same.map(|(span, label)| (*span, Some(printable(label)), AnnotationKind::Context)));
        let quote = diagnostic.code != crate::codes::SECRET_IN_FILE;
        group = self.snippet(group, diagnostic.span.file, marks, quote);
        for (span, label) in diagnostic.labels.iter().filter(|label| !near(label)) {
            group = self.snippet(
                group,
                span.file,
                vec![(*span, Some(printable(label)), AnnotationKind::Context)],
                quote,
            );
        }
        if let Some(help) = &diagnostic.help {
            group = group.element(Level::HELP.message(printable(help)));
        }
        vec![group]
    }

    /// Quotes the lines of `marks`, which are close together; without `quote` only says where they are, so that a secret
    /// does not reach a log.
    fn snippet<'a>(
        &'a self,
        group: Group<'a>,
        file: FileId,
        marks: Vec<(Span, Option<String>, AnnotationKind)>,
        quote: bool,
    ) -> Group<'a> {
        let Some(source) = self.source(file) else { return group };
        let text = &*source.text;
        let ranges: Vec<Range<usize>> =
            marks.iter().map(|(span, ..)| first_line(text, span.range())).collect();
        let first = ranges.iter().map(|range| range.start).min().unwrap_or(0);
        let last = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let start = text[..first].rfind('\n').map_or(0, |at| at + 1);
        let end = text[last..].find('\n').map_or(text.len(), |at| last + at);
        let end = if text[start..end].ends_with('\r') && end > last { end - 1 } else { end };
        let (line, column) = self.position(file, ranges[0].start as u32);
        if !quote || text.is_empty() || text[start..end].lines().any(|line| line.len() > LONGEST_LINE) {
            let mut group = group.element(Origin::path(&*source.path).line(line).char_column(column));
            for label in marks.into_iter().filter_map(|(_, label, _)| label) {
                group = group.element(Level::NOTE.message(label));
            }
            return group;
        }
        let (line, _) = self.position(file, start as u32);
        let mut snippet = Snippet::source(&text[start..end]).line_start(line).path(&*source.path);
        for ((_, label, kind), range) in marks.into_iter().zip(ranges) {
            snippet = snippet.annotation(kind.span(range.start - start..range.end - start).label(label));
        }
        group.element(snippet)
    }

    /// The report for programs: a list of objects with code, severity, message, file and positions from 1.
    pub fn to_json(&self) -> serde_json::Value {
        let place = |span: Span| {
            let (line, column) = self.position(span.file, span.start);
            let (end_line, end_column) = self.position(span.file, span.end);
            json!({
                "file": self.source(span.file).map_or("", |source| &source.path),
                "line": line,
                "column": column,
                "end_line": end_line,
                "end_column": end_column,
            })
        };
        let list = self.sorted().into_iter().map(|diagnostic| {
            json!({
                "code": diagnostic.code.as_str(),
                "severity": match diagnostic.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                },
                "message": diagnostic.message,
                "expected": diagnostic.expected,
                "help": diagnostic.help,
                "place": place(diagnostic.span),
                "labels": diagnostic.labels.iter()
                    .map(|(span, text)| json!({ "place": place(*span), "text": text }))
                    .collect::<Vec<_>>(),
            })
        });
        serde_json::Value::Array(list.collect())
    }
}

fn expected(text: &str) -> String {
    format!("expected {}", printable(text))
}

/// The part of `range` in its first line, so that a long map does not fill the screen. Never splits a character.
fn first_line(text: &str, range: Range<usize>) -> Range<usize> {
    let mut start = range.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let mut end = range.end.clamp(start, text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let end = text[start..end].find('\n').map_or(end, |at| start + at);
    start..end
}

/// Authored text as it may reach a terminal: control characters are shown, not obeyed.
fn printable(text: &str) -> String {
    if !text.chars().any(is_control) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Characters that steer a terminal or the direction of text.
pub(crate) fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// A piece of authored text for a message: in backticks, on one line, cut when long.
pub fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let one_line: String = text.chars().take(LONGEST).map(|c| if c == '\n' { ' ' } else { c }).collect();
    let dots = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("`{one_line}{dots}`")
}

/// The known name that is nearest to `name`, if one is near enough to be a slip.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let limit = 1 + name.chars().count().min(64) / 4;
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase(), limit), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between two names (insert, delete, replace, swap of neighbours), or more than `limit` when there are more.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let a: Vec<char> = a.chars().take(80).collect();
    let b: Vec<char> = b.chars().take(80).collect();
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut row = above.clone();
    for (i, x) in a.iter().enumerate() {
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(x != y);
            row[j + 1] = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        std::mem::swap(&mut before, &mut above);
        std::mem::swap(&mut above, &mut row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;

    #[test]
    fn each_mistake_is_shown_once_in_order() {
        let mut out = Diagnostics::new();
        let first = out.add_file("a.yaml", b"one: 1\ntwo: 2\n");
        let second = out.add_file("b.yaml", "\u{e4}\u{f6}: x\r\ny: z\r\n".as_bytes());
        for (file, range, message) in [
            (second, 9..10, "late"),
            (first, 7..10, "second"),
            (second, 9..10, "late"),
            (first, 0..3, "first"),
        ] {
            out.push(Diagnostic::new(codes::UNKNOWN_KEY, Span::new(file, range), message));
        }
        let messages: Vec<&str> = out.sorted().iter().map(|diagnostic| diagnostic.message.as_str()).collect();
        assert_eq!(messages, ["first", "second", "late"]);
        assert_eq!(out.position(second, 9), (2, 1));
        assert_eq!(out.position(second, 4), (1, 3));
        let json = out.to_json();
        assert_eq!(json[1]["place"]["line"], 2);
        assert_eq!(json[2]["place"]["file"], "b.yaml");
    }

    #[test]
    fn what_was_authored_cannot_steer_the_terminal() {
        let mut out = Diagnostics::new();
        let file = out.add_file("a.yaml", b"a: 1\n");
        let message = format!("unknown key {}", quoted("\u{1b}[31mred\u{202e}"));
        out.push(Diagnostic::new(codes::UNKNOWN_KEY, Span::new(file, 0..1), message).help("\u{7}"));
        let shown = out.render(false);
        assert!(!shown.contains(|c: char| is_control(c) && c != '\n'), "{shown:?}");
    }

    #[test]
    fn any_place_can_be_shown() {
        let long = format!("{}: 1\n", "k".repeat(5000));
        for text in ["", "a", "\n\n", "\u{e4}\u{1f600}", long.as_str()] {
            let mut out = Diagnostics::new();
            let file = out.add_file("a.yaml", text.as_bytes());
            for start in 0..text.len().min(10) + 2 {
                for end in start..text.len().min(10) + 3 {
                    let span = Span::new(file, start..end);
                    let label = Span::new(file, 0..text.len());
                    out.push(Diagnostic::new(codes::SYNTAX, span, "x").expected("y").label(label, "z"));
                }
            }
            assert!(out.render(true).contains("a.yaml"));
            assert!(out.to_json().is_array());
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_reported_together() {
        let mut all = Diagnostics::new();
        for (path, bytes) in [("big.yaml", vec![b'a'; 2 << 20]), ("latin.yaml", b"a: b\na: \xe9\n".to_vec())]
        {
            all.append(Source::from_bytes(path, &bytes).expect_err(path));
        }
        let places: Vec<String> = all
            .sorted()
            .iter()
            .map(|found| {
                let (line, column) = all.position(found.span.file, found.span.start);
                let path = &all.source(found.span.file).unwrap().path;
                format!("{} {path}:{line}:{column}", found.code)
            })
            .collect();
        assert_eq!(places, ["E0101 big.yaml:1:1", "E0102 latin.yaml:2:4"]);
        assert_eq!(&*Source::from_bytes("a.yaml", "é".as_bytes()).unwrap().text, "é");
    }

    #[test]
    fn a_secret_is_not_quoted() {
        let mut out = Diagnostics::new();
        let file = out.add_file("a.yaml", b"password: hunter2\n");
        out.push(Diagnostic::new(codes::SECRET_IN_FILE, Span::new(file, 10..17), "a secret stands here"));
        let shown = out.render(false);
        assert!(shown.contains("a.yaml:1:11") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn slips_find_the_name_that_was_meant() {
        let known = ["needs", "uses", "timeout", "for_each", "on_failure"];
        for (slip, expected) in [
            ("need", Some("needs")),
            ("use", Some("uses")),
            ("tiemout", Some("timeout")),
            ("forEach", Some("for_each")),
            ("Uses", Some("uses")),
            ("colour", None),
        ] {
            assert_eq!(nearest(slip, known), expected, "{slip}");
        }
    }
}
