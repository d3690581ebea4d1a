//! Recognises compressed streams by their first bytes and decompresses them.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::rc::Rc;

/// Buffer between the source and what reads it, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;
/// Most memory an xz decoder may take, in bytes. `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 256 << 20;
/// Bytes looked at to recognise a stream.
const PREFIX_BYTES: usize = 512;

/// What a stream may unpack to for each of its bytes, and besides. More than gzip can (1,032); zstd
/// makes gigabytes of a few hundred kilobytes, which somebody has to read.
const RATIO: u64 = 1100;
const FREE_BYTES: u64 = 64 << 30;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
    /// The .xz format, one or more streams.
    Xz,
}

/// Why a stream cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// Reading the first bytes, or starting the decoder, failed.
    #[error(transparent)]
    Read(io::Error),
    /// The stream ends too early.
    #[error("the compressed stream is truncated")]
    Truncated,
    /// A compression that Mica does not read.
    #[error("the stream is compressed with {0}, which is not supported; decompress it first")]
    Unsupported(&'static str),
}

impl From<io::Error> for CompressionError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated
        } else {
            Self::Read(error)
        }
    }
}

/// The first bytes of a stream, read already, and the rest.
pub(crate) type Prefixed<R> = Chain<Cursor<Vec<u8>>, R>;

/// Decompresses `input` according to its first bytes.
pub(crate) fn decompress<'a, R: Read + 'a>(
    input: R,
) -> Result<(Compression, Box<dyn Read + 'a>), CompressionError> {
    let (prefix, input) = peek(input, PREFIX_BYTES)?;
    let compression = recognise(&prefix)?;
    let taken = Rc::new(Cell::new(0));
    let counted = Counted { input, taken: Rc::clone(&taken) };
    let output = decoder(compression, BufReader::with_capacity(BUFFER_BYTES, counted))?;
    if compression == Compression::Plain {
        return Ok((compression, output));
    }
    Ok((compression, Box::new(Bounded { output, given: 0, taken, free: FREE_BYTES })))
}

/// Counts what a decoder takes.
struct Counted<R> {
    input: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        self.taken.set(self.taken.get().saturating_add(bytes));
        Ok(count)
    }
}

/// Ends with an error where a decoder gives beyond all measure more than it takes.
struct Bounded<R> {
    output: R,
    given: u64,
    taken: Rc<Cell<u64>>,
    free: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.output.read(buffer)?;
        self.given = self.given.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        let most = self.taken.get().saturating_mul(RATIO).saturating_add(self.free);
        if self.given > most {
            return Err(io::Error::other(format!(
                "it unpacks to {RATIO} times its size and more; decompress it first if that is meant"
            )));
        }
        Ok(count)
    }
}

/// Reads the first `bytes` of `input`, or fewer, and puts them back in front.
pub(crate) fn peek<R: Read>(mut input: R, bytes: usize) -> io::Result<(Vec<u8>, Prefixed<R>)> {
    let mut prefix = Vec::with_capacity(bytes);
    let wanted = u64::try_from(bytes).unwrap_or(u64::MAX);
    input.by_ref().take(wanted).read_to_end(&mut prefix)?;
    Ok((prefix.clone(), Cursor::new(prefix).chain(input)))
}

/// Recognises a compression by the first bytes of a stream.
pub(crate) fn recognise(prefix: &[u8]) -> Result<Compression, CompressionError> {
    Ok(match prefix {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a skippable frame, which pzstd and zstd:chunked put first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => return Err(CompressionError::Unsupported("bzip2")),
        [0x04, 0x22, 0x4d, 0x18, ..] => return Err(CompressionError::Unsupported("lz4")),
        [b'L', b'Z', b'I', b'P', ..] => return Err(CompressionError::Unsupported("lzip")),
        [0x1f, 0x9d, ..] => return Err(CompressionError::Unsupported("compress")),
        [0x89, b'L', b'Z', b'O', ..] => return Err(CompressionError::Unsupported("lzop")),
        [0x5d, 0, 0, _, ..] => return Err(CompressionError::Unsupported("lzma")),
        [b'P', b'K', 3, 4, ..] => return Err(CompressionError::Unsupported("zip")),
        _ => Compression::Plain,
    })
}

fn decoder<'a>(
    compression: Compression,
    input: impl BufRead + 'a,
) -> Result<Box<dyn Read + 'a>, CompressionError> {
    Ok(match compression {
        Compression::Plain => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        Compression::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY_BYTES,
                liblzma::stream::CONCATENATED,
            )
            .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_unpacks_beyond_all_measure_ends_with_an_error() {
        let bomb = zstd::stream::encode_all(io::repeat(0).take(64 << 20), 1).unwrap();
        let unpacked = |free| {
            let taken = Rc::new(Cell::new(0));
            let input = BufReader::new(Counted { input: &bomb[..], taken: Rc::clone(&taken) });
            let output = decoder(Compression::Zstd, input).unwrap();
            io::copy(&mut Bounded { output, given: 0, taken, free }, &mut io::sink())
        };
        assert_eq!(unpacked(64 << 20).unwrap(), 64 << 20);
        let error = unpacked(1 << 20).unwrap_err().to_string();
        assert!(error.contains("decompress it first"), "{error}");
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 1).unwrap()
    }

    fn read(bytes: &[u8]) -> (Compression, io::Result<Vec<u8>>) {
        let (compression, mut decoder) = decompress(bytes).unwrap();
        let mut out = Vec::new();
        let result = decoder.read_to_end(&mut out).map(|_| out);
        (compression, result)
    }

    #[test]
    fn every_format_is_recognised_and_decoded_also_when_concatenated() {
        let text = b"some text ".repeat(10_000);
        assert_eq!(read(&text).1.unwrap(), text);
        for (compression, encode) in [
            (Compression::Gzip, gzip as fn(&[u8]) -> Vec<u8>),
            (Compression::Zstd, zstd),
            (Compression::Xz, xz),
        ] {
            let mut twice = encode(&text);
            twice.extend(encode(&text));
            let (found, decoded) = read(&twice);
            assert_eq!(found, compression);
            assert_eq!(decoded.unwrap(), text.repeat(2));
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error_not_an_end() {
        let text: Vec<u8> =
            (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for encode in [gzip as fn(&[u8]) -> Vec<u8>, zstd, xz] {
            let whole = encode(&text);
            let error = read(&whole[..whole.len() / 2]).1.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        }
    }

    #[test]
    fn unsupported_formats_are_named() {
        let error = decompress(&b"BZh91AY&SY"[..]).err().unwrap();
        assert!(error.to_string().contains("bzip2"), "{error}");
    }

    #[test]
    fn short_streams_are_plain() {
        for bytes in [&b""[..], b"\x1f", b"x"] {
            assert_eq!(read(bytes).1.unwrap(), bytes);
        }
    }
}
