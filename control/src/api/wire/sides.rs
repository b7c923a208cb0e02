//! What FTP's helper knows of a connection, as it is kept in a file: the two sides of a control connection.
//!
//! Text is written as a string whose characters are its bytes (ISO 8859-1): FTP's own is ASCII, and any other survives.

use dataplane::api::{Edit as ApiEdit, FtpLine, SavedSide, SavedSides, StreamParts, Text};
use serde::{Deserialize, Serialize};

/// One direction of an FTP control connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// Sequence number that comes next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
    /// The line that has begun there, as far as it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// The window that its last segment offered, as it stands in the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u16>,
    /// What edits that are not listed have added to sequence numbers.
    #[serde(default)]
    pub offset: i32,
    /// The highest of its bytes that was acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked: Option<u32>,
    /// Pieces for which the receiver gets others, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
    /// Whether the last of them goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open: bool,
}

/// A piece for which the receiver gets another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Its first sequence number.
    pub at: u32,
    /// How many bytes it has.
    pub old: u32,
    /// What comes in its place.
    pub text: String,
}

impl Side {
    /// Both directions of what a worker says.
    pub fn both(saved: &SavedSides) -> [Self; 2] {
        saved.each_ref().map(Self::new)
    }

    fn new(s: &SavedSide) -> Self {
        let StreamParts { offset, edits, open, acked } = &s.stream;
        let edit = |e: &ApiEdit| Edit { at: e.at, old: e.old, text: written(&e.text) };
        Self {
            next: s.next,
            line: s.line.as_ref().map(|line| written(line)),
            window: s.window,
            offset: offset.cast_signed(),
            acked: *acked,
            edits: edits.iter().map(edit).collect(),
            open: *open,
        }
    }

    /// What a worker makes of it.
    ///
    /// # Errors
    /// One sentence, where it is more than a helper can know.
    pub fn saved(&self) -> Result<SavedSide, String> {
        let mut stream = StreamParts {
            offset: self.offset.cast_unsigned(),
            open: self.open,
            acked: self.acked,
            ..Default::default()
        };
        for e in &self.edits {
            let text = Text::try_from(&*bytes(&e.text)?).map_err(|_| "the text of an edit is too long".to_owned())?;
            let edit = ApiEdit { at: e.at, old: e.old, text };
            stream.edits.try_push(edit).map_err(|_| "there are too many edits".to_owned())?;
        }
        let line = self.line.as_deref().map(bytes).transpose()?;
        let line = line.map(|line| FtpLine::try_from(&*line)).transpose().map_err(|_| "the line is too long")?;
        Ok(SavedSide { next: self.next, line, window: self.window, stream })
    }
}

fn written(text: &[u8]) -> String {
    text.iter().map(|&b| char::from(b)).collect()
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    text.chars().map(|c| u8::try_from(c).map_err(|_| format!("{c:?} is no byte"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_comes_back_from_its_text() {
        let edit = ApiEdit { at: u32::MAX, old: 3, text: [b'1', b'\r', 0xff].into_iter().collect() };
        let stream = StreamParts {
            offset: 5_u32.wrapping_neg(),
            edits: [edit].into_iter().collect(),
            open: false,
            acked: Some(9),
        };
        let line = Some(b"PORT 10,".iter().copied().collect());
        let saved = [SavedSide::default(), SavedSide { next: Some(7), line, window: Some(512), stream }];
        let text = serde_json::to_string(&Side::both(&saved)).expect("JSON");
        let expect = r#"[{"offset":0},{"next":7,"line":"PORT 10,","window":512,"offset":-5,"acked":9,"edits":[{"at":4294967295,"old":3,"text":"1\r"#;
        assert!(text.starts_with(expect), "{text}");
        let back: [Side; 2] = serde_json::from_str(&text).expect("it reads back");
        assert_eq!(back.map(|side| side.saved()), saved.map(Ok));
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let edit = |text: &str| Edit { at: 1, old: 1, text: text.into() };
        let with = |edits: Vec<Edit>| Side { edits, ..Side::default() }.saved();
        assert_eq!(with(vec![edit("é")]).map(|s| s.stream.edits[0].text[0]), Ok(0xe9));
        assert_eq!(with(vec![edit("→")]), Err("'→' is no byte".into()));
        assert_eq!(with(vec![edit(&"x".repeat(65))]), Err("the text of an edit is too long".into()));
        assert_eq!(with(vec![edit("x"); 5]), Err("there are too many edits".into()));
        let long = Side { line: Some("x".repeat(70)), ..Side::default() };
        assert_eq!(long.saved(), Err("the line is too long".into()));
    }
}
