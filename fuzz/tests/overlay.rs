//! The overlay of slices against painting a byte array.

use std::ops::Range;

use bolero::check;
use bolero::generator::*;
use kiseki_core::file::overlay::{Overlay, Source};

mod kept;

use kept::Kept;

const SPACE: usize = 256;

#[derive(Clone, Debug, TypeGenerator)]
enum Op {
    Paint(u8, u8),
    Clear(u8, u8),
    /// Removes every source whose number leaves this rest by three.
    Drop(u8),
    Plan(u8, u8),
}

/// One byte of the source of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    number: usize,
    off: u64,
}

impl Source for Shown {
    fn skip(&self, n: u64) -> Self {
        Self { off: self.off + n, ..*self }
    }

    fn goes_on(&self, n: u64, next: &Self) -> bool {
        self.skip(n) == *next
    }
}

/// `len` may be 0; the end may lie past `SPACE`, where nothing is compared.
fn range(start: u8, len: u8) -> Range<u64> {
    u64::from(start)..u64::from(start) + u64::from(len)
}

fn compare(overlay: &Overlay<Shown>, model: &[Option<Shown>], range: Range<u64>) {
    let mut at = range.start;
    for piece in overlay.plan(range.clone()) {
        assert_eq!(piece.range.start, at, "a gap or an overlap in a plan");
        assert!(piece.range.start < piece.range.end, "an empty piece");
        for index in piece.range.clone() {
            let shown = piece.source.map(|source| source.skip(index - piece.range.start));
            assert_eq!(shown, model[index as usize], "byte {index}");
        }
        at = piece.range.end;
    }
    assert_eq!(at, range.end.max(range.start), "a plan that is not the whole range");
}

#[test]
fn overlay_shows_what_was_painted_last() {
    let kept = Kept::of("overlay_shows_what_was_painted_last");
    let ops = produce::<Vec<Op>>().with().len(0..=64usize);
    check!().with_iterations(5_000).with_generator(ops).for_each(|ops| {
        kept.seen();
        let mut overlay = Overlay::default();
        let mut model = vec![None; 2 * SPACE];
        for (number, op) in ops.iter().enumerate() {
            match *op {
                Op::Paint(start, len) => {
                    let range = range(start, len);
                    overlay.paint(range.clone(), Shown { number, off: 0 });
                    range.clone().for_each(|at| model[at as usize] = Some(Shown { number, off: at - range.start }));
                }
                Op::Clear(start, len) => {
                    overlay.clear(range(start, len));
                    range(start, len).for_each(|at| model[at as usize] = None);
                }
                Op::Drop(rest) => {
                    let keep = |shown: &Shown| shown.number % 3 != usize::from(rest) % 3;
                    overlay.retain(keep);
                    model.iter_mut().for_each(|shown| *shown = shown.filter(keep));
                }
                Op::Plan(start, len) => compare(&overlay, &model, range(start, len)),
            }
            overlay.check();
            compare(&overlay, &model, 0..2 * SPACE as u64);
        }
        assert_eq!(overlay.is_empty(), model.iter().all(Option::is_none));
    });
}
