//! Compression that gives the same bytes each time.

use std::io::{self, Write};

use flate2::write::GzEncoder;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// What every reader of images understands.
    #[default]
    Gzip,
    /// Smaller and quicker; OCI images since 1.1.
    Zstd,
}

/// A stream on its way into another.
pub enum Compressor<W: Write> {
    /// As it is.
    Plain(W),
    /// With gzip; the header names no file and no time.
    Gzip(Box<GzEncoder<W>>),
    /// With zstd, with a checksum.
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Compressor<W> {
    /// Compresses into `out`.
    ///
    /// # Errors
    /// Those of zstd, when memory is short.
    pub fn new(out: W, how: Compression) -> io::Result<Self> {
        Ok(match how {
            Compression::None => Self::Plain(out),
            Compression::Gzip => {
                Self::Gzip(Box::new(GzEncoder::new(out, flate2::Compression::default())))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    /// Writes what is left and gives the other stream back.
    ///
    /// # Errors
    /// Those of the other stream.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // A flush in the middle would cost size; `finish` writes everything.
        Ok(())
    }
}
