//! After a crash: a writer's folder against the writer's memory.
//!
//! Owns: reading the folder back. Leaves to others: what it may hold (`content`, `names`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::content::{Content, Wrong};
use crate::names::{Kept, Node, Tree};
use crate::writer::{Writer, join};

impl Writer<'_> {
    /// Lets go of all handles: their mount is gone.
    pub(crate) fn crashed(&mut self) {
        self.open.clear();
    }

    /// Compares the folder with what was promised, and goes on from what was found.
    pub(crate) fn judge(&mut self) -> (Option<Kept>, Vec<(String, Wrong)>) {
        let mut seen = Tree::new();
        let mut found = BTreeMap::new();
        let label = |path: &str| self.dir.join(path).display().to_string();
        if let Err(error) = walk(&self.dir, "", &mut seen, &mut found) {
            return (None, vec![(label(""), Wrong::Lost(format!("cannot be listed: {error}")))]);
        }
        let kept = match self.names.settle(&seen) {
            Ok(kept) => kept,
            Err(wrong) => return (None, vec![(label(""), wrong)]),
        };
        let mut wrongs = Vec::new();
        for (ino, file) in &found {
            let path = &file.paths[0];
            if file.nlink != file.paths.len() as u64 {
                let text = format!("{} links for the names {:?}", file.nlink, file.paths);
                wrongs.push((label(path), Wrong::Invented(text)));
            }
            // A file whose creation was never answered holds nothing yet.
            let shared = self.shared;
            let content = self.files.entry(*ino).or_insert_with(|| Content::new(shared.file_id(), file.mode));
            match fs::read(self.dir.join(path)) {
                Ok(bytes) if bytes.len() as u64 != file.len => {
                    let text = format!("{} bytes came of {}", bytes.len(), file.len);
                    wrongs.push((label(path), Wrong::Lost(text)));
                }
                Ok(bytes) => {
                    if let Err(wrong) = content.settle(&bytes, file.mode, kept.below) {
                        wrongs.push((label(path), wrong));
                    }
                }
                Err(error) => wrongs.push((label(path), Wrong::Lost(format!("cannot be read: {error}")))),
            }
        }
        let reachable: BTreeSet<u64> = self.names.reachable().into_iter().collect();
        self.files.retain(|ino, _| reachable.contains(ino));
        (Some(kept), wrongs)
    }

    /// Removes everything this writer made.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.open.clear();
        fs::remove_dir_all(&self.dir)
    }

    pub(crate) fn pending(&self) -> usize {
        self.names.pending() + self.files.values().map(Content::pending).sum::<usize>()
    }
}

struct Found {
    paths: Vec<String>,
    mode: u32,
    nlink: u64,
    len: u64,
}

fn walk(dir: &Path, path: &str, tree: &mut Tree, found: &mut BTreeMap<u64, Found>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.path().symlink_metadata()?;
        let name = join(path, &entry.file_name().to_string_lossy());
        tree.insert(name.clone(), Node { ino: meta.ino(), dir: meta.is_dir() });
        if meta.is_dir() {
            walk(&entry.path(), &name, tree, found)?;
        } else {
            let (mode, nlink, len) = (meta.mode() & 0o7777, meta.nlink(), meta.len());
            let file = found.entry(meta.ino()).or_insert_with(|| Found { paths: vec![], mode, nlink, len });
            file.paths.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::writer::{Shared, Stop};

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Works on a plain folder, harms it, and returns what the judge says.
    fn verdict(name: &str, harm: impl Fn(&Path)) -> Vec<Wrong> {
        let folder = Folder(std::env::temp_dir().join(format!("torture-{name}-{}", std::process::id())));
        fs::create_dir_all(&folder.0).unwrap();
        let shared = Shared::new();
        let mut writer = Writer::new(&shared, &folder.0, 0, 7);
        writer.set_up().unwrap();
        for _ in 0..400 {
            match writer.step() {
                Ok(()) => {}
                Err(Stop::Failed(what, error)) => panic!("{what}: {error}"),
                Err(Stop::Wrong(path, wrong)) => panic!("{path}: {wrong:?}"),
            }
        }
        // All of it promised, whatever the last steps were.
        for (path, ino) in writer.file_paths() {
            writer.promised(&path, ino).unwrap_or_else(|_| panic!("no call was made"));
        }
        writer.crashed();
        let (path, _) = writer.file_paths().into_iter().max_by_key(|(_, ino)| writer.files[ino].now().len()).unwrap();
        harm(&writer.dir.join(path));
        let (_, wrongs) = writer.judge();
        wrongs.into_iter().map(|(_, wrong)| wrong).collect()
    }

    #[test]
    fn a_folder_that_kept_all_is_right() {
        assert_eq!(verdict("whole", |_| ()), vec![]);
    }

    #[test]
    fn harm_is_seen() {
        let shorter = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(64).unwrap();
        let zeros = |path: &Path| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap();
        let gone = |path: &Path| fs::remove_file(path).unwrap();
        let foreign = |path: &Path| fs::write(path.with_file_name("foreign"), b"").unwrap();
        assert!(matches!(verdict("shorter", shorter)[..], [Wrong::Lost(_)]));
        assert!(matches!(verdict("zeros", zeros)[..], [Wrong::Invented(_)]));
        assert!(matches!(verdict("gone", gone)[..], [Wrong::Lost(_)]));
        assert!(matches!(verdict("foreign", foreign)[..], [Wrong::Invented(_)]));
    }
}
