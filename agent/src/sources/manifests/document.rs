//! YAML and JSON text to documents: trees in which every value knows its line.
//!
//! What is read is exactly what was written: a repeated key is an error, nothing is converted from one type to another
//! (`"80"` stays a text, `80` a number), and `yes`, `off` and the like are texts.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::sources::typed::Step;

/// A document of a file that is not empty.
#[derive(Debug)]
pub(super) struct Document {
    /// Counted from 1, in the order of the file.
    pub number: usize,
    /// Its content.
    pub root: Node,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Counted from 1; 0 where it is not known.
    line: u64,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Scalar(Value),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
struct Key {
    line: u64,
    text: String,
}

/// Text that is not YAML or JSON.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// The document in which it is, counted from 1.
    pub document: usize,
    /// The line, where it is known.
    pub line: Option<u64>,
    /// What is wrong.
    pub message: String,
}

/// The documents of a YAML file.
pub(super) fn read_yaml(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Aliases that multiply are limited. The library's other limits would refuse large listings, which the node's
    // operator has put there and which are limited in bytes.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_depth: 100,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    match serde_saphyr::from_multiple_with_options::<Parsed<true>>(text, options) {
        Ok(roots) => {
            let numbers = Numbering::new(text);
            Ok(roots
                .into_iter()
                .map(|Parsed(root)| Document { number: numbers.at(root.line), root })
                .collect())
        }
        Err(error) => {
            let line = error.location().map(|l| l.line()).filter(|line| *line != 0);
            let document = Numbering::new(text).at(line.unwrap_or(1));
            Err(SyntaxError { document, line, message: without_position(&error.to_string()) })
        }
    }
}

/// The documents of a YAML file that can be read, and what is wrong with the others.
pub(super) fn read_yaml_each(text: &str) -> (Vec<Document>, Vec<SyntaxError>) {
    if let Ok(documents) = read_yaml(text) {
        return (documents, Vec::new());
    }
    let numbers = Numbering::new(text);
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    let lines: Vec<&str> = text.lines().collect();
    let mut starts: Vec<usize> =
        numbers.marks.iter().filter_map(|&line| usize::try_from(line - 1).ok()).collect();
    if numbers.unmarked {
        starts.insert(0, 0);
    }
    for (at, &start) in starts.iter().enumerate() {
        let end = starts.get(at + 1).copied().unwrap_or(lines.len());
        // Empty lines stand for the rest of the file, so that every line keeps its number.
        let padded = "\n".repeat(start) + &lines[start..end].join("\n");
        match read_yaml(&padded) {
            Ok(read) => {
                documents.extend(read.into_iter().map(|d| Document { number: numbers.at(d.root.line), ..d }));
            }
            Err(error) => {
                let line = error.line.unwrap_or_else(|| u64::try_from(start + 1).unwrap_or(1));
                errors.push(SyntaxError { document: numbers.at(line), ..error });
            }
        }
    }
    (documents, errors)
}

/// The documents of a JSON file; several may follow one another.
pub(super) fn read_json(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let (documents, errors) = read_json_each(text);
    errors.into_iter().next().map_or(Ok(documents), Err)
}

/// The documents of a JSON file up to the first that cannot be read, and what is wrong with that.
pub(super) fn read_json_each(text: &str) -> (Vec<Document>, Vec<SyntaxError>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    for (root, number) in serde_json::Deserializer::from_str(text).into_iter::<Parsed<false>>().zip(1..) {
        match root {
            Ok(Parsed(root)) if root.is_null() => {}
            Ok(Parsed(root)) => documents.push(Document { number, root }),
            Err(error) => {
                let line = u64::try_from(error.line()).ok().filter(|line| *line != 0);
                errors.push(SyntaxError {
                    document: number,
                    line,
                    message: without_position(&error.to_string()),
                });
                break;
            }
        }
    }
    (documents, errors)
}

/// The libraries put the position into the text; it has a place of its own in our messages.
fn without_position(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

impl Node {
    /// The value of a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.content {
            Content::Mapping(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text.
    pub fn as_str(&self) -> Option<&str> {
        match &self.content {
            Content::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// The elements of a sequence.
    pub fn elements(&self) -> Option<&[Node]> {
        match &self.content {
            Content::Sequence(elements) => Some(elements),
            _ => None,
        }
    }

    /// Whether it is a mapping, as every object is.
    pub fn is_mapping(&self) -> bool {
        matches!(self.content, Content::Mapping(_))
    }

    /// Whether nothing is there.
    pub fn is_null(&self) -> bool {
        matches!(self.content, Content::Scalar(Value::Null))
    }

    /// The value without its lines.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::Sequence(elements) => elements.iter().map(Self::to_json).collect(),
            Content::Mapping(entries) => {
                Value::Object(entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect())
            }
        }
    }

    /// The line of a field, or of the closest thing around it that is there.
    pub fn line_of(&self, path: &[Step]) -> Option<u64> {
        let mut node = self;
        let mut line = self.line;
        for step in path {
            let next = match (step, &node.content) {
                (Step::Key(wanted), Content::Mapping(entries)) => {
                    entries.iter().find(|(key, _)| key.text == *wanted).map(|(key, node)| (key.line, node))
                }
                (Step::Index(index), Content::Sequence(elements)) => {
                    elements.get(*index).map(|element| (element.line, element))
                }
                _ => None,
            };
            let Some((at, below)) = next else { break };
            (line, node) = (at, below);
        }
        (line != 0).then_some(line)
    }
}

/// What the parsers make: a node whose lines are known (`LINES`, with YAML) or not (with JSON).
struct Parsed<const LINES: bool>(Node);

struct ParsedContent<const LINES: bool>(Content);

impl<'de, const LINES: bool> Deserialize<'de> for Parsed<LINES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (line, content) = if LINES {
            let spanned = Spanned::<ParsedContent<LINES>>::deserialize(deserializer)?;
            (spanned.referenced.line(), spanned.value)
        } else {
            (0, ParsedContent::<LINES>::deserialize(deserializer)?)
        };
        Ok(Self(Node { line, content: content.0 }))
    }
}

impl<'de, const LINES: bool> Deserialize<'de> for ParsedContent<LINES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor::<LINES>).map(Self)
    }
}

struct ContentVisitor<const LINES: bool>;

impl<'de, const LINES: bool> Visitor<'de> for ContentVisitor<LINES> {
    type Value = Content;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value of YAML or JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(|n| Content::Scalar(n.into())).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Content, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut elements = Vec::new();
        while let Some(Parsed::<LINES>(element)) = access.next_element()? {
            elements.push(element);
        }
        Ok(Content::Sequence(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = next_key::<A, LINES>(&mut access)? {
            if !seen.insert(key.text.clone()) {
                return Err(A::Error::custom(format!("the key `{}` is there twice", key.text)));
            }
            let Parsed::<LINES>(value) = access.next_value()?;
            entries.push((key, value));
        }
        Ok(Content::Mapping(entries))
    }
}

fn next_key<'de, A: MapAccess<'de>, const LINES: bool>(access: &mut A) -> Result<Option<Key>, A::Error> {
    Ok(if LINES {
        access.next_key::<Spanned<String>>()?.map(|key| Key { line: key.referenced.line(), text: key.value })
    } else {
        access.next_key()?.map(|text| Key { line: 0, text })
    })
}

/// Which document a line belongs to. The parser passes over empty documents, people count them.
struct Numbering {
    /// Lines of the `---` marks.
    marks: Vec<u64>,
    /// Whether a document starts before the first mark.
    unmarked: bool,
}

impl Numbering {
    fn new(text: &str) -> Self {
        let mut numbering = Self { marks: Vec::new(), unmarked: false };
        for (line, number) in text.lines().zip(1..) {
            // A mark at the start of a line ends a document whatever it stands in: the format says so.
            if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t'])) {
                numbering.marks.push(number);
            } else if numbering.marks.is_empty() && !line.trim().is_empty() && !line.starts_with(['#', '%']) {
                numbering.unmarked = true;
            }
        }
        numbering
    }

    fn at(&self, line: u64) -> usize {
        let marks = self.marks.partition_point(|mark| *mark <= line);
        (marks + usize::from(self.unmarked)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(text: &str) -> Step {
        Step::Key(text.to_owned())
    }

    #[test]
    fn values_keep_their_types() {
        let text = "\
port: 80
name: \"80\"
yes: off
time: 2024-01-01T00:00:00Z
zero: 0080
none: ~
empty: ''
neg: -5
real: 1.5
big: 18446744073709551615
list: [true, 'true', {}, []]
text: |
  one
  two
";
        let documents = read_yaml(text).unwrap();
        let expected = json!({"port": 80, "name": "80", "yes": "off", "time": "2024-01-01T00:00:00Z", "zero": "0080",
            "none": null, "empty": "", "neg": -5, "real": 1.5, "big": u64::MAX, "list": [true, "true", {}, []],
            "text": "one\ntwo\n"});
        assert_eq!(documents[0].root.to_json(), expected);
        let again = read_json(&serde_json::to_string_pretty(&expected).unwrap()).unwrap();
        assert_eq!(again[0].root.to_json(), expected);
    }

    #[test]
    fn anchors_and_merge_keys_are_expanded() {
        let text = "base: &b {app: x, tier: y}\nuse:\n  <<: *b\n  tier: z\nagain: *b\n";
        let expected = json!({"base": {"app": "x", "tier": "y"}, "use": {"app": "x", "tier": "z"},
            "again": {"app": "x", "tier": "y"}});
        assert_eq!(read_yaml(text).unwrap()[0].root.to_json(), expected);
    }

    #[test]
    fn aliases_that_multiply_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let before = format!("*a{}", i - 1);
            text.extend([format!("a{i}: &a{i} ["), vec![before; 10].join(", "), "]\n".to_owned()]);
        }
        assert!(read_yaml(&text).is_err());
    }

    #[test]
    fn fields_have_lines() {
        let text = "# a\n---\na: 1\nb:\n  c:\n  - d: 1\n    e: 2\n  - f\n---\nx: 1\n";
        let documents = read_yaml(text).unwrap();
        let root = &documents[0].root;
        for (path, line) in [
            (vec![], 3),
            (vec![key("b")], 4),
            (vec![key("b"), key("c")], 5),
            (vec![key("b"), key("c"), Step::Index(0), key("e")], 7),
            (vec![key("b"), key("c"), Step::Index(1)], 8),
            (vec![key("b"), key("not there"), key("x")], 4),
        ] {
            assert_eq!(root.line_of(&path), Some(line), "{path:?}");
        }
        assert_eq!(documents[1].root.line_of(&[key("x")]), Some(10));
    }

    #[test]
    fn documents_are_counted_as_people_do() {
        for (text, expected) in [
            ("", vec![]),
            ("# only a comment\n", vec![]),
            ("---\n...\n", vec![]),
            ("a: 1", vec![1]),
            ("---\na: 1\n---\nb: 1", vec![1, 2]),
            ("# head\n\n---\na: 1\n---\n# nothing\n---\nb: 1\n--- {c: 1}\n", vec![1, 3, 4]),
            ("a: 1\n---\nb: |\n  ----\n  --- x\n---\nc: 1\n", vec![1, 2, 3]),
        ] {
            let numbers: Vec<_> = read_yaml(text).unwrap().iter().map(|d| d.number).collect();
            assert_eq!(numbers, expected, "{text}");
        }
        let numbers: Vec<_> = read_json("{} null {}").unwrap().iter().map(|d| d.number).collect();
        assert_eq!(numbers, [1, 3]);
    }

    #[test]
    fn broken_text_is_an_error_with_its_place() {
        for (text, document, line) in [
            ("a: 1\n---\nb: [1, 2\n---\nc: 1\n", 2, 3),
            ("a: 1\nb: 2\na: 3\n", 1, 3),
            ("a:\n  b: 1\n c: 1\n", 1, 3),
            ("a: 1\n---\nb: *nowhere\n", 2, 3),
        ] {
            let error = read_yaml(text).unwrap_err();
            assert_eq!((error.document, error.line), (document, Some(line)), "{text} {error:?}");
            assert!(!error.message.is_empty() && !error.message.contains("line"), "{error:?}");
        }
        for (text, document, line) in
            [("{}\n{\"a\": }", 2, 2), ("{\"a\": 1,\n\"a\": 2}", 1, 2), ("{\"a\": [1", 1, 1)]
        {
            let error = read_json(text).unwrap_err();
            assert_eq!((error.document, error.line), (document, Some(line)), "{text} {error:?}");
            assert!(!error.message.contains("line"), "{error:?}");
        }
    }
}
