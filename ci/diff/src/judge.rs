//! Whether both sides gave the same.
//!
//! Owns: comparing answers and trees, the differences that are allowed. Leaves to others: asking (`pair`).
//!
//! Times are the system's own. Compared is whether a call changed them, and if it set them, the value.

use std::collections::BTreeMap;
use std::path::Path;

use crate::call::Answer;
use crate::walk::Entry;

/// More of them, and the documentation describes another file system.
const ALLOWED_MAX: usize = 10;
/// In place of a kind: the length that stat(2) gives for a directory.
const DIRECTORY_LENGTH: &str = "length-of-directory";
/// A time this close to the beginning of an episode was taken from the clock, which may be set meanwhile; those that
/// are set are years away.
const BY_CLOCK_NS: i128 = 86_400_000_000_000;
/// In place of a kind: what reading and writing does to the times of what the file system holds only the name of.
const SPECIAL_TIMES: &str = "times of a fifo or device";
const TIMES: [&str; 3] = ["atime", "mtime", "ctime"];

/// A difference that the documentation explains.
#[derive(Debug)]
struct Rule {
    /// Kinds of calls, or what is compared in a tree.
    kinds: Vec<String>,
    /// Errno by name, "ok", or "*".
    reference: String,
    tested: String,
}

/// The differences that are allowed, and how often each was met.
#[derive(Debug, Default)]
pub(crate) struct Allowed {
    rules: Vec<Rule>,
    pub(crate) met: u64,
}

impl Allowed {
    /// From lines `KIND,... | REFERENCE | TESTED | FILE: SENTENCE`. Each sentence must stand in its file below `docs`.
    pub(crate) fn read(file: &Path, docs: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let mut rules = vec![];
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let parts: Vec<&str> = line.splitn(4, '|').map(str::trim).collect();
            let [kind, reference, tested, source] = parts[..] else {
                return Err(format!("{}: not KIND | REFERENCE | TESTED | FILE: SENTENCE: {line}", file.display()));
            };
            let (page, sentence) = source.split_once(": ").ok_or(format!("{}: no sentence: {line}", file.display()))?;
            let page =
                std::fs::read_to_string(docs.join(page)).map_err(|error| format!("cannot read {page}: {error}"))?;
            // Lines end anywhere in a text.
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            if !words(&page).contains(&words(sentence)) {
                return Err(format!("{}: the documentation does not say: {sentence}", file.display()));
            }
            let kinds = kind.split(',').map(|kind| kind.trim().to_owned()).collect();
            rules.push(Rule { kinds, reference: reference.into(), tested: tested.into() });
        }
        if ALLOWED_MAX < rules.len() {
            return Err(format!("{}: more than {ALLOWED_MAX} differences are allowed", file.display()));
        }
        Ok(Self { rules, met: 0 })
    }

    pub(crate) fn allows(&mut self, kind: &str, reference: &str, tested: &str) -> bool {
        let fits = |rule: &str, outcome: &str| rule.split(',').any(|one| one == "*" || one == outcome);
        let found = self.rules.iter().any(|rule| {
            rule.kinds.iter().any(|known| fits(known, kind))
                && fits(&rule.reference, reference)
                && fits(&rule.tested, tested)
        });
        self.met += u64::from(found);
        found
    }
}

/// What two answers to one call are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    Allowed,
    Different,
}

pub(crate) fn answers(kind: &str, reference: &Answer, tested: &Answer, allowed: &mut Allowed) -> Verdict {
    if (reference.value, &reference.text) == (tested.value, &tested.text) {
        Verdict::Same
    } else if allowed.allows(kind, &reference.outcome(), &tested.outcome()) {
        Verdict::Allowed
    } else {
        Verdict::Different
    }
}

/// Two trees that disagree: in what, and how each has it.
#[derive(Debug)]
pub(crate) struct Disagreement {
    pub(crate) what: String,
    pub(crate) path: String,
    pub(crate) reference: String,
    pub(crate) tested: String,
}

/// A tree and its times by inode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) tree: Vec<Entry>,
    times: BTreeMap<u64, [i128; 3]>,
}

impl Seen {
    pub(crate) fn new(tree: Vec<Entry>) -> Self {
        let times = tree.iter().map(|entry| (entry.ino, entry.times)).collect();
        Self { tree, times }
    }
}

/// Compares the trees after a call, given how they were before it. `begin`: nanoseconds since 1970 at which the episode
/// began.
pub(crate) fn trees(
    before: (&Seen, &Seen),
    after: (&Seen, &Seen),
    begin: i128,
    allowed: &mut Allowed,
) -> Option<Disagreement> {
    let (reference, tested) = (&after.0.tree, &after.1.tree);
    let differ = |what: &str, path: &str, reference: String, tested: String| {
        Some(Disagreement { what: what.into(), path: path.into(), reference, tested })
    };
    let names = |tree: &[Entry]| tree.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>();
    let (left, right) = (names(reference), names(tested));
    if left != right {
        let only = |a: &[String], b: &[String]| {
            let only: Vec<&String> = a.iter().filter(|name| !b.contains(name)).collect();
            format!("only here: {only:?}")
        };
        return differ("names", "", only(&left, &right), only(&right, &left));
    }
    let mut inodes = BTreeMap::new();
    for (a, b) in reference.iter().zip(tested) {
        let fields = [
            ("type in the listing", a.listed.to_string(), b.listed.to_string()),
            ("mode", format!("{:o}", a.mode), format!("{:o}", b.mode)),
            ("nlink", a.nlink.to_string(), b.nlink.to_string()),
            ("uid", a.uid.to_string(), b.uid.to_string()),
            ("gid", a.gid.to_string(), b.gid.to_string()),
            ("rdev", format!("{:?}", a.rdev), format!("{:?}", b.rdev)),
            ("device", a.inside.to_string(), b.inside.to_string()),
        ];
        for (what, left, right) in fields {
            if left != right {
                return differ(what, &a.path, left, right);
            }
        }
        if a.size != b.size && !(a.is_directory() && allowed.allows(DIRECTORY_LENGTH, "*", "*")) {
            return differ("size", &a.path, a.size.to_string(), b.size.to_string());
        }
        if *inodes.entry(a.ino).or_insert(b.ino) != b.ino {
            return differ("links", &a.path, "another name of an inode".into(), "an inode of its own".into());
        }
        for found in times(before, (a, b), begin) {
            if !allowed.allows(&found.what, &found.reference, &found.tested) {
                return Some(found);
            }
        }
    }
    None
}

fn times(before: (&Seen, &Seen), (a, b): (&Entry, &Entry), begin: i128) -> Vec<Disagreement> {
    let old = match (before.0.times.get(&a.ino), before.1.times.get(&b.ino)) {
        (Some(left), Some(right)) => Some((left, right)),
        // A name that is new on either side has no times to compare with: the reference uses numbers of inodes again.
        _ => None,
    };
    let is_special = ![libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK].contains(&a.kind());
    let mut found = vec![];
    for (index, name) in TIMES.iter().enumerate() {
        let (left, right) = (a.times[index], b.times[index]);
        let mut differ = |what: String, reference: String, tested: String| {
            found.push(Disagreement { what, path: a.path.clone(), reference, tested });
        };
        let what = |which: &str| if is_special { SPECIAL_TIMES.to_owned() } else { format!("{name} {which}") };
        let by_clock = |time: i128| (time - begin).abs() < BY_CLOCK_NS;
        if by_clock(left) != by_clock(right) || !by_clock(left) && left != right {
            differ(what("value"), left.to_string(), right.to_string());
            continue;
        }
        let Some((old_left, old_right)) = old else { continue };
        let (moved_left, moved_right) = (left != old_left[index], right != old_right[index]);
        if moved_left != moved_right {
            let text = |moved: bool| if moved { "changed" } else { "kept" }.to_owned();
            differ(what("changed"), text(moved_left), text(moved_right));
        }
    }
    found
}
