//! What the machine itself does to whoever waits: a byte goes to another thread over loopback and back, at fixed times, beside the load.
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

/// Between two bytes.
const GAP: Duration = Duration::from_millis(5);

/// Goes on until it is asked.
pub(super) struct Echo {
    over: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<Duration>>>,
}

impl Echo {
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for the echo")?;
        let mut near = TcpStream::connect(listener.local_addr()?).context("connect to the echo")?;
        let (mut far, _) = listener.accept().context("accept the echo")?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        // Ends when the other end is closed.
        std::thread::spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).and_then(|()| far.write_all(&byte)).is_ok() {}
        });
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let (mut times, mut due) = (Vec::new(), Instant::now());
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                near.write_all(&[0])?;
                near.read_exact(&mut [0])?;
                times.push(due.elapsed());
                due += GAP;
            }
            Ok(times)
        });
        Ok(Self { over, thread })
    }

    /// How long each took since it was due, the shortest first.
    pub(super) fn times(self) -> Result<Vec<Duration>> {
        self.over.store(true, Ordering::Relaxed);
        let times = self.thread.join().map_err(|_| anyhow!("the echo panicked"))?;
        let mut times = times.context("the echo broke")?;
        times.sort_unstable();
        Ok(times)
    }
}
