use alloc::string::String;
use alloc::vec::Vec;

use bytes::Bytes;

use super::super::upkeep::fake::World;
use super::super::{Client, Options};
use crate::format::keys;
use crate::meta::SetAttr;
use crate::types::Ino;

const LIMIT: usize = 3;

/// Names and lengths, as a listing of the root shows them.
async fn listed(client: &Client<World>) -> Vec<(String, u64)> {
    let page = client.readdirplus(Ino::ROOT, 0, LIMIT).await.expect("it is there");
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let mut page: Vec<(String, u64)> = page.iter().map(|(entry, attr)| (shown(&entry.name), attr.length)).collect();
    page.sort();
    page
}

fn is(page: &[(String, u64)], expected: &[(&str, u64)]) -> bool {
    page.iter().map(|(name, length)| (name.as_str(), *length)).eq(expected.iter().copied())
}

#[test]
fn a_page_that_was_read_ahead_is_shown_once() {
    let world = World::mountable();
    // Nothing is known by heart, so that metadata may change behind its back.
    let options = Options { meta_cache: 0, ..Options::default() };
    world.block_on(async {
        let (client, _, handle) = world.mount_with_file(options).await;
        client.release(handle).await.expect("no error");
        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT + 1).await;
        world.txn(|txn, _| {
            txn.delete(&keys::dentry(Ino::ROOT, b"file"));
            Ok(())
        });
        assert!(is(&listed(&client).await, &[("file", 0)]));
        assert!(is(&listed(&client).await, &[]));
    });
}

#[test]
fn a_page_that_was_read_ahead_shows_what_is_there() {
    let world = World::mountable();
    world.block_on(async {
        let (client, entry, handle) = world.mount_with_file(Options::default()).await;
        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT).await;
        // What was accepted since, and not committed.
        client.write(handle, 0, Bytes::from_static(b"12345"), false).await.expect("there is space");
        assert!(is(&listed(&client).await, &[("file", 5)]));
        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT).await;
        client.fsync(handle).await.expect("it is stored");
        client.release(handle).await.expect("no error");
        assert!(is(&listed(&client).await, &[("file", 5)]));

        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT).await;
        client.setattr(entry.ino, SetAttr::default(), Some(7)).await.expect("it is there");
        client.sync().await.expect("it is committed");
        assert!(is(&listed(&client).await, &[("file", 7)]));

        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT).await;
        let (_, other) = World::new_file(&client, b"other").await;
        client.release(other).await.expect("no error");
        assert!(is(&listed(&client).await, &[("file", 7), ("other", 0)]));

        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT).await;
        client.unlink(Ino::ROOT, b"file").await.expect("it is there");
        assert!(is(&listed(&client).await, &[("other", 0)]));

        // More than was read is wanted.
        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT - 1).await;
        for name in [b"a", b"b"] {
            let (_, handle) = World::new_file(&client, name).await;
            client.release(handle).await.expect("no error");
        }
        client.readdirplus_ahead(Ino::ROOT, 0, LIMIT - 1).await;
        assert_eq!(listed(&client).await.len(), LIMIT);
        client.unmount().await.expect("an unmount");
    });
}
