//! How a document becomes the body of a message: as it is or compressed, with headers that say which.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::COMPRESSION;
use crate::spec::Values;

/// zstd's own default: a metrics document shrinks to about a tenth, in well under a millisecond.
const COMPRESSION_LEVEL: i32 = 3;

/// Compresses when `nats.compression` says so.
pub(in crate::deliver) struct Encoder(Option<zstd::bulk::Compressor<'static>>);

/// A document as it goes out.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::deliver) struct Encoded {
    pub(in crate::deliver) payload: Bytes,
    pub(in crate::deliver) compressed: bool,
}

impl Encoder {
    pub(in crate::deliver) fn new(values: &Values) -> Result<Self, String> {
        Ok(Self(match values.get(&COMPRESSION) {
            true => Some(zstd::bulk::Compressor::new(COMPRESSION_LEVEL).map_err(|error| format!("zstd: {error}"))?),
            false => None,
        }))
    }

    /// The document, compressed if it can be.
    pub(in crate::deliver) fn encode(&mut self, document: &[u8]) -> Encoded {
        match self.0.as_mut().and_then(|zstd| zstd.compress(document).ok()) {
            Some(compressed) => Encoded { payload: Bytes::from(compressed), compressed: true },
            None => Encoded::plain(document),
        }
    }
}

impl Encoded {
    /// The document as it is.
    pub(in crate::deliver) fn plain(document: &[u8]) -> Self {
        Self { payload: Bytes::copy_from_slice(document), compressed: false }
    }

    pub(in crate::deliver) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/json");
        if self.compressed {
            headers.insert("Content-Encoding", "zstd");
        }
        headers
    }
}
