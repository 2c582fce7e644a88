//! A map of a few small keys, which lie next to each other: a look at one of some dozens costs one cache line and not several.

/// Some dozens of values by their keys. Iterates in the order of the keys; inserting and removing move what is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Few<K, V> {
    /// Rising.
    keys: Vec<K>,
    /// As many, in the same order.
    values: Vec<V>,
}

impl<K: Copy + Ord, V> Few<K, V> {
    /// None.
    pub const fn new() -> Self {
        Self { keys: Vec::new(), values: Vec::new() }
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Puts a value in, and returns the one that was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.keys.binary_search(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.values[at], value)),
            Err(at) => {
                self.keys.insert(at, key);
                self.values.insert(at, value);
                None
            }
        }
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: K) -> Option<V> {
        let at = self.keys.binary_search(&key).ok()?;
        self.keys.remove(at);
        Some(self.values.remove(at))
    }

    /// The value of a key.
    pub fn get(&self, key: K) -> Option<&V> {
        let at = self.keys.binary_search(&key).ok()?;
        Some(&self.values[at])
    }

    /// The value of a key, to be changed.
    pub fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let at = self.keys.binary_search(&key).ok()?;
        Some(&mut self.values[at])
    }

    /// All, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.keys.iter().copied().zip(&self.values)
    }

    /// All values, in the order of the keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.values.iter()
    }

    /// All values, in the order of the keys, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.values.iter_mut()
    }
}

impl<K: Copy + Ord, V> Default for Few<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Puts in and takes out in a fixed muddle, beside the map of the standard library.
    #[test]
    fn does_what_an_ordinary_map_does() {
        let (mut few, mut map) = (Few::new(), BTreeMap::new());
        let mut at = 7_u32;
        for step in 0..2000_u32 {
            at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = at >> 27;
            if at & 0x400 == 0 {
                assert_eq!(few.insert(key, step), map.insert(key, step));
            } else {
                assert_eq!(few.remove(key), map.remove(&key));
            }
            assert_eq!((few.len(), few.is_empty()), (map.len(), map.is_empty()));
            assert_eq!(few.get(key), map.get(&key));
            assert!(few.iter().eq(map.iter().map(|(key, value)| (*key, value))));
            if let (Some(one), Some(other)) = (few.get_mut(key), map.get_mut(&key)) {
                (*one, *other) = (*one + 1, *other + 1);
            }
        }
        few.values_mut().for_each(|value| *value = 0);
        assert!(few.values().all(|value| *value == 0));
    }
}
