//! The kept values against a map.

use alloc::collections::BTreeMap;
use alloc::vec;

use super::*;
use crate::testkit::rng::Rng;

fn key(number: u64) -> Vec<u8> {
    // Of different lengths, so that rooms are of different sizes.
    [&number.to_be_bytes()[..], &vec![7; (number % 40) as usize]].concat()
}

/// Whether the model was followed, with keys looked up in vain.
fn follow(seed: u64, bytes: usize) -> (u64, u64) {
    let rng = &mut Rng::new(seed);
    let (mut kept, mut model) = (Kept::new(bytes), BTreeMap::<Vec<u8>, Option<Vec<u8>>>::new());
    let (mut hits, mut misses) = (0, 0);
    for step in 0..2000u64 {
        let key = key(rng.below(60));
        let hash = hash(&key);
        match rng.below(4) {
            0 => {
                kept.remove(hash, &key);
                model.remove(&key);
                assert!(!kept.has(hash, &key));
            }
            1 if !kept.has(hash, &key) => {
                let value = (rng.below(4) > 0).then(|| vec![step as u8; rng.below(50) as usize]);
                kept.insert(hash, &key, value.as_deref());
                model.insert(key, value);
            }
            _ => match kept.look(hash, &key, |value| value.map(<[u8]>::to_vec)) {
                Some(value) => {
                    assert_eq!(Some(&value), model.get(&key));
                    hits += 1;
                }
                None => misses += u64::from(model.remove(&key).is_some()),
            },
        }
        assert!(kept.bytes() <= bytes);
        assert!(kept.new.entries.capacity() <= bytes / 2);
    }
    (hits, misses)
}

#[test]
fn what_is_found_is_what_was_kept() {
    for (bytes, hits_min, lost) in [(1 << 20, 500, false), (3000, 300, true), (200, 5, true)] {
        for seed in 1..=100 {
            let (hits, misses) = follow(seed, bytes);
            assert!(hits_min <= hits, "{hits} hits with {bytes} bytes");
            assert_eq!(misses > 0, lost, "{misses} of {bytes} bytes are gone");
        }
    }
    assert_eq!(follow(1, 0).0, 0);
}

#[test]
fn one_that_is_written_again_and_again_takes_no_more_room() {
    let mut kept = Kept::new(1 << 20);
    for number in 0..100u8 {
        kept.insert(hash(&[number]), &[number], Some(&[number; 100]));
    }
    let before = kept.bytes();
    for round in 0..100_000u32 {
        kept.remove(hash(&[3]), &[3]);
        kept.insert(hash(&[3]), &[3], Some(&[round as u8; 100]));
    }
    assert_eq!(kept.bytes(), before);
}

#[test]
fn the_longest_ones_fit() {
    let mut kept = Kept::new(1 << 20);
    let (key, value) = (vec![1; 1000], vec![2; usize::from(u16::MAX) - 1]);
    kept.insert(hash(&key), &key, Some(&value));
    assert_eq!(kept.look(hash(&key), &key, |found| found == Some(&value[..])), Some(true));
}
