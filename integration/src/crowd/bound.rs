//! What the wire allows at best. Pure.
//!
//! Kumar and Ross (2006): a file of F bytes is at N readers no sooner than max(F/U, F/min d, N·F/(U + Σu)), with U the source's
//! uplink, u and d those of the readers, and a fluid schedule reaches it. Rates are of payload: what is left of a link's rate
//! when every 1,448 bytes of TCP payload travel in 1,514 bytes of Ethernet frame (timestamps on, no VLAN tag).

/// Payload in a full frame: 1,500 less headers of IPv4 and TCP with timestamps.
const PAYLOAD: u64 = 1448;
/// A full frame as the kernel's shaper counts it: 1,500 and the Ethernet header.
const FRAME: u64 = 1514;

/// Bits of payload per second over a link of so many bits per second.
pub fn payload_rate(link: u64) -> u64 {
    (u128::from(link) * u128::from(PAYLOAD) / u128::from(FRAME)) as u64
}

/// Links of readers, in payload bits per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Links {
    /// Uplink of the source.
    pub source: u64,
    /// Up and down of each reader.
    pub readers: Vec<(u64, u64)>,
}

impl Links {
    /// Seconds until the last reader can have `size` bytes, when all begin at once.
    ///
    /// # Panics
    /// When there is no reader.
    pub fn seconds(&self, size: u64) -> f64 {
        let bits = size as f64 * 8.0;
        let slowest = self.readers.iter().map(|(_, down)| *down).min().expect("there are readers") as f64;
        let up: u64 = self.readers.iter().map(|(up, _)| *up).sum();
        let all = bits * self.readers.len() as f64 / (self.source + up) as f64;
        (bits / self.source as f64).max(bits / slowest).max(all)
    }
}

/// Seconds for one reader alone: what it can't do better than.
pub fn alone(size: u64, source: u64, down: u64) -> f64 {
    size as f64 * 8.0 / source.min(down) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_links_cost_what_one_reader_costs() {
        let links = Links { source: 800, readers: vec![(800, 800); 8] };
        assert!((links.seconds(1000) - 10.0).abs() < 1e-9);
        assert!((alone(1000, 800, 800) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn each_of_the_three_bounds_can_be_the_one_that_holds() {
        let slow_source = Links { source: 400, readers: vec![(800, 800); 8] };
        assert!((slow_source.seconds(1000) - 20.0).abs() < 1e-9);
        let slow_reader = Links { source: 800, readers: vec![(800, 800), (800, 200)] };
        assert!((slow_reader.seconds(1000) - 40.0).abs() < 1e-9);
        let nobody_gives = Links { source: 800, readers: vec![(0, 800); 4] };
        assert!((nobody_gives.seconds(1000) - 40.0).abs() < 1e-9);
    }

    #[test]
    fn headers_are_taken_off_the_rate() {
        assert_eq!(payload_rate(200_000_000), 191_281_373);
    }
}
