//! Paths beneath a root, made of checked segments only.

use std::fmt;
use std::sync::Arc;

use farrier_model::Value;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A relative path that cannot climb: no segment is empty, `.` or `..`, none contains a slash or NUL. The path of no
/// segments is the folder itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SafePath(Arc<str>);

/// Why something is not a segment of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadSegment(pub(crate) String);

impl fmt::Display for BadSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SafePath {
    /// The path of these segments.
    pub(crate) fn of<'a>(segments: impl IntoIterator<Item = &'a str>) -> Result<SafePath, BadSegment> {
        let mut path = String::new();
        for segment in segments {
            let wrong = match segment {
                "" => Some("a segment of the path is empty".into()),
                "." | ".." => Some(format!("`{segment}` cannot be a segment of a path")),
                _ if segment.contains('/') => {
                    Some(format!("`{segment}` contains a slash, and is to be one segment"))
                }
                _ if segment.contains('\0') => Some(format!("{segment:?} contains a NUL character")),
                _ => None,
            };
            if let Some(wrong) = wrong {
                return Err(BadSegment(wrong));
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(segment);
        }
        Ok(SafePath(path.into()))
    }

    /// The path of one value (one segment) or a list of them. Whole numbers stand for their digits.
    pub(crate) fn of_value(value: &Value) -> Result<SafePath, BadSegment> {
        let texts: Vec<String> = match value {
            Value::List(items) => items.iter().map(segment_text).collect::<Result<_, _>>()?,
            one => vec![segment_text(one)?],
        };
        SafePath::of(texts.iter().map(String::as_str))
    }

    /// What to hand to the kernel.
    pub(crate) fn as_str(&self) -> &str {
        if self.0.is_empty() { "." } else { &self.0 }
    }

    /// The segments, in order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }
}

/// Between two processes: no segment has a slash, so what they are joined by parts them again.
impl Serialize for SafePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Checked as it was on the other side.
impl<'de> Deserialize<'de> for SafePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SafePath, D::Error> {
        let path = String::deserialize(deserializer)?;
        let segments = (!path.is_empty()).then(|| path.split('/'));
        SafePath::of(segments.into_iter().flatten()).map_err(D::Error::custom)
    }
}

impl fmt::Display for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn segment_text(value: &Value) -> Result<String, BadSegment> {
    match value {
        Value::Text(_) | Value::Int(_) => Ok(value.to_string()),
        other => Err(BadSegment(format!("a segment of the path is {}, not text", other.kind()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cannot_climb() {
        assert_eq!(SafePath::of(["a", "b c", "..d", "é"]).unwrap().as_str(), "a/b c/..d/é");
        assert_eq!(SafePath::of([]).unwrap().as_str(), ".");
        for bad in ["", ".", "..", "a/b", "/", "/etc", "a\0b"] {
            assert!(SafePath::of(["ok", bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_are_checked_again_on_the_other_side() {
        for segments in [&[][..], &["a"], &["a", "b c", "..d"]] {
            let path = SafePath::of(segments.iter().copied()).unwrap();
            let told = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<SafePath>(&told).unwrap(), path);
        }
        for bad in [r#""..""#, r#""a/../b""#, r#""/""#, r#""/etc""#, r#""a/""#, r#""a//b""#, "7"] {
            assert!(serde_json::from_str::<SafePath>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_give_segments() {
        let path = |json: &str| SafePath::of_value(&Value::from_json(json).unwrap());
        assert_eq!(path(r#"["a", 7]"#).unwrap().as_str(), "a/7");
        assert_eq!(path(r#""a""#).unwrap().as_str(), "a");
        assert_eq!(path("[]").unwrap().segments().count(), 0);
        for bad in ["null", "[null]", "[[\"a\"]]", "1.5", r#""a/b""#, r#"["..", "a"]"#] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
