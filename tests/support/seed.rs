//! Where random tests begin.

/// The seeds that `count` runs of the calling test begin with, each printed.
///
/// `MICA_TEST_SEED` is the only one if it is a number. Fresh ones if it is `random`, and in a long run;
/// otherwise the test's own, so that a test that fails shows what was changed, and not what chance had
/// not met before.
pub(crate) fn seeds(count: usize) -> Vec<u64> {
    let wish = std::env::var("MICA_TEST_SEED").unwrap_or_default();
    let long = std::env::var("MICA_TEST_COUNTS").as_deref() == Ok("long");
    let mut random = if long || wish == "random" {
        fastrand::Rng::new()
    } else {
        // The thread of a test has its name.
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().bytes();
        fastrand::Rng::with_seed(name.fold(0, |sum, byte| (sum * 31 + u64::from(byte)) % (1 << 40)))
    };
    let seeds = match wish.parse() {
        Ok(seed) => vec![seed],
        Err(_) => (0..count).map(|_| random.u64(0..1_000_000_000)).collect(),
    };
    for seed in &seeds {
        println!("MICA_TEST_SEED={seed}");
    }
    seeds
}

/// The seed of a test that runs once.
pub(crate) fn seed() -> u64 {
    seeds(1)[0]
}
