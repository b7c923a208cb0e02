//! `sets`: named addresses, from the file itself or from one beside it.

use super::super::address::{Element, Union, read_file};
use super::super::error::quoted;
use super::super::node::Node;
use super::super::reader::Reader;
use super::super::schema;
use super::{NAME, Names, is_name};

/// Reads `sets` into `names`.
pub fn sets<'y>(node: &'y Node, reader: &Reader<'y>, names: &mut Names) {
    for (key, node) in reader.entries(node, "a mapping of set names") {
        // A digit first could begin an address.
        if !is_name(&key.text) || key.text.starts_with(|c: char| c.is_ascii_digit()) || key.text == "not" {
            let message = format!("{} cannot name a set; accepted: {NAME}, no digit first", quoted(&key.text));
            reader.refuse_key(node, key, message);
        }
        let section = schema::Set::read(node, reader);
        let kind = reader
            .required(node, "type", section.kind)
            .and_then(|kind| reader.choice(kind, &[("prefix", ())], &["port", "mac", "interface", "domain"]));
        let set = match (section.elements, section.file) {
            _ if kind.is_none() => Union::default().into_set(),
            (Some(elements), None) => {
                let accepted = "a prefix, an address or a range first-last";
                let mut union = Union::default();
                for item in reader.items(elements, &format!("a list, each {accepted}")) {
                    let Some(text) = reader.text(item, accepted) else { continue };
                    match Element::parse(text) {
                        Ok(element) => union.add(element),
                        Err((why, accepted)) => reader.refuse_value(item, text, why, accepted),
                    }
                }
                union.into_set()
            }
            (None, Some(file)) => match reader.text(file, "the path of a file") {
                Some(path) => {
                    let path = reader.file().parent().unwrap_or(reader.file()).join(path);
                    read_file(&path, |line, message| match line {
                        Some(line) => reader.refuse_elsewhere(file, &path, line, message),
                        None => reader.refuse(file, message),
                    })
                }
                None => Union::default().into_set(),
            },
            (Some(_), Some(_)) => {
                reader.refuse(node, r#"has both "elements" and "file"; accepted: one of them"#);
                Union::default().into_set()
            }
            (None, None) => {
                reader.refuse(node, r#"has no members; accepted: with "elements" or "file""#);
                Union::default().into_set()
            }
        };
        names.set_index.insert(key.text.clone(), names.sets.len());
        names.sets.push((key.text.clone(), set));
    }
}
