//! Where a tree or a file is, as runbooks write it: a root of the target and a path beneath it.

use std::borrow::Cow;
use std::fmt;

use farrier_model::Value;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::path::SafePath;
use crate::private::PRIVATE;

/// A folder directly beneath a root.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreePlace {
    /// The root, one of those that the environment names.
    pub(crate) root: String,
    /// The folder's name: one segment of small letters, digits, `-` and `_`, 63 at most.
    pub(crate) path: TreeName,
}

impl fmt::Display for TreePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.root, self.path.0)
    }
}

/// The name of a folder directly beneath a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeName(pub(crate) String);

impl<'de> Deserialize<'de> for TreeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TreeName, D::Error> {
        let path = Segments::deserialize(deserializer)?;
        let [name] = &*path.0 else {
            return Err(D::Error::custom(format!(
                "`{path}` has {} segments; a tree to be archived or deleted lies directly beneath its root",
                path.0.len()
            )));
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let fits = name.len() <= 63
            && name.starts_with(plain)
            && name.chars().all(|c| plain(c) || c == '-' || c == '_');
        if !fits {
            return Err(D::Error::custom(format!(
                "`{}` is not the name of a tree: up to 63 small letters, digits, `-` and `_`, the first a letter \
                 or digit",
                name.escape_debug()
            )));
        }
        Ok(TreeName(name.clone()))
    }
}

impl JsonSchema for TreeName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "tree_name".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Segments::json_schema(generator)
    }
}

/// A file beneath a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilePlace {
    /// The root, one of those that the environment names.
    pub(crate) root: String,
    /// The path beneath it, as a list of segments.
    pub(crate) path: Segments,
}

impl FilePlace {
    /// The folder that holds it, as a path for the kernel, and its name there.
    pub(crate) fn split(&self) -> (String, &str) {
        match &*self.path.0 {
            [] => (".".into(), "."),
            [name] => (".".into(), name),
            [folders @ .., name] => (folders.join("/"), name),
        }
    }
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.root, self.path)
    }
}

/// A path of at least one checked segment that does not lead into the private folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segments(pub(crate) Vec<String>);

impl Segments {
    /// What to hand to the kernel.
    pub(crate) fn joined(&self) -> String {
        self.0.join("/")
    }
}

impl fmt::Display for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.joined())
    }
}

impl<'de> Deserialize<'de> for Segments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Segments, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let path = SafePath::of_value(&value).map_err(|bad| D::Error::custom(bad.0))?;
        let segments: Vec<String> = path.segments().map(str::to_owned).collect();
        match segments.first() {
            None => Err(D::Error::custom("the path has no segments")),
            Some(first) if first == PRIVATE => {
                Err(D::Error::custom(format!("`{PRIVATE}` is Farrier's own, and no path leads there")))
            }
            Some(_) => Ok(Segments(segments)),
        }
    }
}

impl Serialize for Segments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl JsonSchema for Segments {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "segments".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": { "type": "string" }, "minItems": 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(json: &str) -> Result<TreePlace, String> {
        Value::from_json(json).unwrap().read::<TreePlace>().map_err(|error| error.to_string())
    }

    #[test]
    fn a_tree_has_one_plain_name() {
        for good in [r#"["a"]"#, r#""tool-1_b""#, r#"["0abc"]"#, "[7]", &format!("[\"{}\"]", "x".repeat(63))]
        {
            assert!(tree(&format!(r#"{{"root": "r", "path": {good}}}"#)).is_ok(), "{good}");
        }
        let long = format!("[\"{}\"]", "x".repeat(64));
        for bad in [
            "[]",
            r#"["a", "b"]"#,
            r#"[".."]"#,
            r#"["."]"#,
            r#"[""]"#,
            r#"["A"]"#,
            r#"["_a"]"#,
            r#"["-a"]"#,
            r#"["a.b"]"#,
            r#"["a/b"]"#,
            r#"["ä"]"#,
            r#"["a\n"]"#,
            r#"["a\u0000"]"#,
            r#"[".farrier-private"]"#,
            "null",
            &long,
        ] {
            assert!(tree(&format!(r#"{{"root": "r", "path": {bad}}}"#)).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_path_leads_into_the_private_folder() {
        let file = |path: &str| {
            Value::from_json(&format!(r#"{{"root": "r", "path": {path}}}"#)).unwrap().read::<FilePlace>()
        };
        assert!(file(r#"[".farrier-private", "archives", "x.json"]"#).is_err());
        assert_eq!(file(r#"["a", ".farrier-private"]"#).unwrap().split(), ("a".into(), ".farrier-private"));
        assert_eq!(file(r#"["a", "b", "c"]"#).unwrap().split(), ("a/b".into(), "c"));
        assert_eq!(file(r#""c""#).unwrap().split(), (".".into(), "c"));
    }
}
