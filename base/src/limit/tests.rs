use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Pass(Duration),
    Take(u64),
    Set(u64),
}

fn rates() -> impl Strategy<Value = u64> {
    LEAST_RATE..(1 << 31)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u64..400_000_000).prop_map(|nanos| Step::Pass(Duration::from_nanos(nanos))),
        4 => (1..=LARGEST_PART).prop_map(Step::Take),
        1 => rates().prop_map(Step::Set),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    /// Over every span between two takes, whatever the rates were meanwhile.
    #[test]
    fn no_more_passes_than_the_rate_and_one_burst(first in rates(), steps in steps()) {
        let (mut bucket, mut now, mut rate) = (Bucket::new(first), Duration::ZERO, first);
        // What the rates allowed until now, in bytes, and how much had passed before: at every moment.
        let (mut allowed, mut passed, mut moments) = (0.0_f64, 0_u64, Vec::new());
        let mut largest = burst(first);
        for step in steps {
            match step {
                Step::Pass(time) => {
                    now += time;
                    allowed += time.as_secs_f64() * rate as f64;
                }
                Step::Set(to) => {
                    bucket.set(to, now);
                    rate = to;
                    largest = largest.max(burst(to));
                }
                Step::Take(bytes) => {
                    moments.push((allowed, passed));
                    if bucket.take(bytes, now).is_ok() {
                        passed += bytes;
                    }
                }
            }
            for (allowed_then, passed_then) in &moments {
                let most = allowed - allowed_then + largest as f64;
                prop_assert!((passed - passed_then) as f64 <= most + 1.0);
            }
        }
    }

    /// And after exactly the wait that was named, a take succeeds; a moment before, it does not.
    #[test]
    fn the_wait_is_as_long_as_it_must_be_and_no_longer(rate in rates(), parts in proptest::collection::vec(1..=LARGEST_PART, 1..50)) {
        let (mut bucket, mut now) = (Bucket::new(rate), Duration::ZERO);
        for part in parts {
            if let Err(wait) = bucket.take(part, now) {
                prop_assert!(!wait.is_zero());
                prop_assert!(bucket.clone().take(part, now + wait - Duration::from_nanos(1)).is_err());
                now += wait;
                prop_assert_eq!(bucket.take(part, now), Ok(()));
            }
        }
    }

    #[test]
    fn a_changed_rate_holds_at_once(from in rates(), to in rates()) {
        let mut bucket = Bucket::new(from);
        let now = Duration::from_secs(1);
        while bucket.take(LARGEST_PART, now).is_ok() {}
        bucket.set(to, now);
        // What was left could not fill a part; the rest comes at the new rate.
        let wait = bucket.take(LARGEST_PART, now).expect_err("nothing is left");
        prop_assert!(wait.as_secs_f64() <= LARGEST_PART as f64 / to as f64 + 1e-9);
        bucket.set(0, now);
        prop_assert_eq!(bucket.take(LARGEST_PART, now), Ok(()));
    }
}

#[test]
fn a_clock_that_goes_back_gives_nothing() {
    let mut bucket = Bucket::new(LEAST_RATE);
    assert_eq!(bucket.take(LARGEST_PART, Duration::from_secs(9)), Ok(()));
    assert!(bucket.take(1, Duration::from_secs(3)).is_err());
    assert!(bucket.take(1, Duration::from_secs(9)).is_err());
}

#[tokio::test(start_paused = true)]
async fn users_who_take_equal_parts_get_equal_shares() {
    const PART: u64 = 64 << 10;
    let limiter = Limiter::new(1 << 20);
    // The burst is for whoever comes first.
    limiter.take(burst(1 << 20)).await;
    let got = Arc::new(Mutex::new(BTreeMap::new()));
    let users: Vec<_> = (0..64_u32)
        .map(|user| {
            let (limiter, got) = (limiter.clone(), Arc::clone(&got));
            tokio::spawn(async move {
                loop {
                    limiter.take(PART).await;
                    *got.lock().unwrap().entry(user).or_insert(0_u64) += PART;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(60)).await;
    users.iter().for_each(tokio::task::JoinHandle::abort);
    let got = got.lock().unwrap();
    let all: u64 = got.values().sum();
    assert!(all <= 60 << 20 && all > 59 << 20, "{all}");
    let (least, most) = (got.values().min().unwrap(), got.values().max().unwrap());
    assert!(got.len() == 64 && most - least <= PART, "{least} to {most}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_by_the_new_rate() {
    let limiter = Limiter::new(LEAST_RATE);
    limiter.take(burst(LEAST_RATE)).await;
    let start = Instant::now();
    let waiting = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.take(LARGEST_PART).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    limiter.set(8 << 20);
    waiting.await.unwrap();
    // An eighth of the part came in the first second.
    let wanted = 1.0 + 0.875 / 8.0;
    assert!((start.elapsed().as_secs_f64() - wanted).abs() < 0.01, "{:?}", start.elapsed());
    let waiting = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.take(1 << 40).await }
    });
    tokio::task::yield_now().await;
    limiter.set(0);
    let off = Instant::now();
    waiting.await.unwrap();
    assert!(off.elapsed() < Duration::from_millis(1), "a limit that was lifted was still waited for");
}

#[tokio::test(start_paused = true)]
async fn what_had_to_wait_is_counted_and_nothing_else() {
    let limiter = Limiter::new(1 << 20);
    limiter.take(1 << 20).await;
    assert_eq!(limiter.0.metrics.held_back.get(), 0);
    limiter.take(1 << 19).await;
    assert_eq!(limiter.0.metrics.held_back.get(), 1 << 19);
    assert!((limiter.0.metrics.waited.get() - 0.5).abs() < 0.01);
    limiter.set(0);
    limiter.take(1 << 30).await;
    assert_eq!(limiter.0.metrics.held_back.get(), 1 << 19);
    assert_eq!(limiter.0.metrics.rate.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_given_up_holds_nobody_up() {
    let limiter = Limiter::new(LEAST_RATE);
    limiter.take(LARGEST_PART).await;
    let first = tokio::time::timeout(Duration::from_millis(10), limiter.take(LARGEST_PART)).await;
    assert!(first.is_err());
    let start = Instant::now();
    limiter.take(1 << 10).await;
    assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
}
