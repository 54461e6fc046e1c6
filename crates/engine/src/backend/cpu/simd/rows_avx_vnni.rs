//! The rows of `rows_avx2` where AVX-VNNI multiplies bytes: processors with it and without AVX-512 are Intel's since Alder
//! Lake and AMD's since Zen 5.
#![allow(unsafe_code)]

use super::GROUP;
use super::activations::Tile;
use super::block_types::BlockType;
use super::rows::RowLanes;
use super::rows_avx2::Avx2Rows;
use super::tiles::{self, tile_functions};

tile_functions!(
    AvxVnni, Avx2Rows<true>, widest 4, tiles 1 x 4, 2 x 2, 4 x 2,
    features "avx2,fma,f16c,avxvnni"
);
