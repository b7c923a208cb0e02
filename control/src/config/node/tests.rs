use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Node, String> {
    Node::parse(text, Path::new("x.yaml")).map_err(|e| e.to_string())
}

fn get<'n>(node: &'n Node, key: &str) -> &'n Node {
    let Value::Map(entries) = &node.value else { panic!("{key}: not a mapping") };
    &entries.iter().find(|(k, _)| k.text == key).expect("the key is there").1
}

fn scalar<'n>(node: &'n Node, key: &str) -> &'n str {
    let Value::Scalar(text) = &get(node, key).value else { panic!("{key}: not a scalar") };
    text
}

#[test]
fn scalars_stay_what_was_typed() {
    let root = parse(
        "a: 010\nb: on\nc: TRUE\nd: 1e3\ne: 0x1F\nf: \"\\u00e9\"\ng: 'it''s'\nh: -5\ni: .inf\nj: 02:00:00:00:00:0a\n\
         k: 18446744073709551616\nl: 80   # a comment\n\u{fc}: \u{e9}\u{e8} 7\nm: 12\n",
    )
    .expect("it is YAML");
    for (key, text) in [
        ("a", "010"),
        ("b", "on"),
        ("c", "TRUE"),
        ("d", "1e3"),
        ("e", "0x1F"),
        ("f", "é"),
        ("g", "it's"),
        ("h", "-5"),
        ("i", ".inf"),
        ("j", "02:00:00:00:00:0a"),
        ("k", "18446744073709551616"),
        ("l", "80"),
        ("m", "12"),
    ] {
        assert_eq!(scalar(&root, key), text, "{key}");
    }
}

#[test]
fn nothing_and_null_are_null() {
    let root = parse("a:\nb: ~\nc: null\nd: \"\"\ne: \"null\"\n").expect("it is YAML");
    for key in ["a", "b", "c"] {
        assert!(matches!(get(&root, key).value, Value::Null), "{key}");
    }
    assert_eq!((scalar(&root, "d"), scalar(&root, "e")), ("", "null"));
}

#[test]
fn an_alias_stands_where_it_is_used_and_reads_as_its_anchor() {
    let root = parse("a: &port 0443\nb:\n  - *port\n").expect("it is YAML");
    let Value::Seq(items) = &get(&root, "b").value else { panic!("not a list") };
    assert_eq!(items[0].position, (3, 5));
    assert!(matches!(&items[0].value, Value::Scalar(text) if text == "0443"));
}

#[test]
fn paths_name_keys_and_indices() {
    let root = parse("a:\n  - b: 1\n    c: [2, 3]\n").expect("it is YAML");
    let Value::Seq(items) = &get(&root, "a").value else { panic!("not a list") };
    let Value::Seq(inner) = &get(&items[0], "c").value else { panic!("not a list") };
    assert_eq!(root.path_of(&root).as_deref(), Some(""));
    assert_eq!(root.path_of(&items[0]).as_deref(), Some("a[0]"));
    assert_eq!(root.path_of(&inner[1]).as_deref(), Some("a[0].c[1]"));
    assert_eq!(root.path_of(&parse("x").expect("it is YAML")), None);
}

/// Each of these would take the stack or the memory of a reader without limits.
#[test]
fn hostile_documents_end_early_with_a_sentence() {
    let laughs = |n: usize| {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..n {
            text += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
        }
        text
    };
    for (text, want) in [
        ("[".repeat(100_000), "nested too deep"),
        ("{a: ".repeat(100_000), "nested too deep"),
        ("- ".repeat(100_000), "nested too deep"),
        ((0..5_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect(), "nested too deep"),
        (laughs(12), "anchors hold too many values"),
        (format!("a: &a [x]\nb: [{}]", "*a, ".repeat(20_000)), "too many aliases"),
        ("a: &a [*a]".to_owned(), "not YAML"),
        ("? ".repeat(50_000), "nested too deep"),
        (format!("{}: x", "k".repeat(100_000)), "not YAML"),
        ("x".repeat(MAX_BYTES + 1), "at most 33554432"),
        ("---\n".repeat(10_000), "a second YAML document"),
        ("!!python/object x".to_owned(), "not YAML"),
        ("%YAML 9.9\n---\na: b".to_owned(), "not YAML"),
        ("a: \"\\x1b[2J\u{7}".to_owned(), "not YAML"),
    ] {
        let start = text.chars().take(40).collect::<String>();
        match parse(&text) {
            Ok(_) => panic!("{start} was accepted"),
            Err(e) => {
                assert!(e.contains(want), "{start}: {e}");
                assert!(e.len() < 1000 && !e.contains(|c: char| c.is_control()), "{start}: {e}");
            }
        }
    }
}
