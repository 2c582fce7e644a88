//! What holds for any bytes on a peer connection: the fuzz target of `integration/fuzz`, and the test that plays its
//! corpus.

use bytes::BytesMut;
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::{Frame, FrameCodec, FrameError, HEAD};

/// Bytes as they come from a peer. However they are cut, the same frames come out and the same fault ends them; a frame
/// is written again as the bytes that it was read from; and no more room is asked for than a frame may take.
///
/// # Panics
/// When that does not hold.
pub fn frame(data: &[u8]) {
    for most_block in [0, 256 << 10] {
        let codec = FrameCodec { most_block };
        let (frames, fault, rest) = read(codec, data, data.len().max(1));
        for cut in [1, 5] {
            assert_eq!(read(codec, data, cut), (frames.clone(), fault.clone(), rest), "cut by {cut}");
        }
        let mut written = BytesMut::new();
        for frame in &frames {
            let mut codec = codec;
            codec.encode(frame.clone(), &mut written).expect("a frame that was read can be written");
        }
        assert_eq!(data[..written.len()], written[..], "{frames:?}");
        if fault.is_none() {
            assert_eq!(written.len() + rest, data.len(), "bytes were lost");
        }
    }
}

/// Frames, what ended them, and how many bytes wait for more.
fn read(mut codec: FrameCodec, data: &[u8], cut: usize) -> (Vec<Frame>, Option<FrameError>, usize) {
    let most = HEAD + if codec.most_block > 0 { super::LARGEST_LIST_PAYLOAD } else { super::LARGEST_BLOCK_PAYLOAD };
    let (mut frames, mut buffer) = (Vec::new(), BytesMut::new());
    for part in data.chunks(cut) {
        buffer.extend_from_slice(part);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault), 0),
            }
        }
        // Twice: a buffer that grows grows by doubling.
        assert!(buffer.capacity() <= 2 * most + data.len(), "room for {} bytes was made", buffer.capacity());
    }
    (frames, None, buffer.len())
}
