//! The score of the simulator: bugs planted in the client, and how many seeds it takes to notice each.
#![cfg(madsim)]

use kiseki_core::planted::Bug;
use sim::faults::Strikes;
use sim::sweep::first_failure;
use sim::world::Switches;

fn main_of(bug: Bug, seeds: u64, strikes: Strikes) -> Option<(u64, String)> {
    first_failure(0, seeds, 2, Switches { planted: Some(bug), strikes, ..Switches::default() })
}

#[test]
fn every_planted_bug_is_caught() {
    let seeds = std::env::var("KISEKI_SIM_PLANTED").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    let only = std::env::var("KISEKI_SIM_BUG").ok();
    let mut caught = 0;
    for &bug in Bug::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{bug:?}")) {
            continue;
        }
        let started = std::time::Instant::now();
        match main_of(bug, seeds, Strikes::All) {
            Some((seed, what)) => {
                caught += 1;
                let what: String = what.chars().take(150).collect();
                println!("{:<24} {:>5} {:>5.1}s {what}", format!("{bug:?}"), seed + 1, started.elapsed().as_secs_f64());
            }
            None => println!("{:<24}     - {:>5.1}s NOT CAUGHT", format!("{bug:?}"), started.elapsed().as_secs_f64()),
        }
    }
    println!("planted: caught={caught}/{}", Bug::ALL.len());
}
