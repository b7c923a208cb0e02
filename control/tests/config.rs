//! The contract of the configuration: what ships loads, and what is wrong is said in exactly these words.

use std::path::{Path, PathBuf};

use control::config::{Config, load};

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("control is in the workspace").to_owned()
}

fn yaml_files(dir: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(dir)).expect("the folder is there");
    let mut files: Vec<_> = entries.map(|e| e.expect("entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    files
}

/// Loads a file as the user would from the repository's root: messages name it from there.
fn load_from_root(path: &Path) -> Result<Config, String> {
    load(path).map_err(|e| e.to_string().replace(&format!("{}/", root().display()), ""))
}

#[test]
fn every_shipped_configuration_loads() {
    let files = yaml_files("configs");
    assert!(files.len() >= 3);
    for path in files {
        if let Err(e) = load_from_root(&path) {
            panic!("{e}");
        }
    }
}

/// Each file of configs/bad begins with its whole message, a line of it after each `# expect: `.
#[test]
fn every_bad_configuration_gives_exactly_its_message() {
    let files = yaml_files("configs/bad");
    assert!(files.len() >= 25);
    let mut wrong = String::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("it can be read");
        let expected: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
        let got = load_from_root(&path).expect_err("a bad configuration loads");
        if got != expected.join("\n") {
            let lines = got.lines().map(|line| format!("# expect: {line}\n")).collect::<String>();
            wrong.push_str(&format!("{} gives\n{lines}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
