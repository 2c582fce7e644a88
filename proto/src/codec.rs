//! How messages of `shoal.control.v1` become bytes: as prost does it, but with buffers that begin small.
//!
//! tonic begins with 8 KiB for each direction of each stream. A session says a hundred bytes a second and lives for weeks, and control has ten
//! thousand of them: that would be 160 MiB of air. Buffers grow with what comes.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// A heartbeat, an answer of candidates, or some hashes.
const BEGIN: usize = 512;
/// tonic's own: what waits to be sent at once.
const YIELD: usize = 32 << 10;

/// prost, with small buffers.
#[derive(Debug, Clone)]
pub(crate) struct Small<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Small<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Small<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BEGIN, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BEGIN, YIELD))
    }
}
