//! The parameters of every kernel, as `cuda/params.cuh` has them; both sides assert the sizes.

/// What a kernel takes as its one parameter.
///
/// # Safety
/// The type is plain data with the layout of the structure of the same name in `cuda/params.cuh`.
pub(crate) unsafe trait Params: Copy {}

/// Declares structures of parameters. Addresses of device memory are `u64`, 0 for none.
macro_rules! params {
    ($($name:ident, $bytes:literal { $($field:ident: $type:ty,)* })*) => { $(
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name { $(pub $field: $type,)* }

        const _: () = assert!(size_of::<$name>() == $bytes);

        // SAFETY: `repr(C)`, and the fields are those of the structure in `cuda/params.cuh`, or of the kernel that has one
        // to itself, in their order.
        unsafe impl Params for $name {}
    )* };
}

/// Where the planes of a matrix start.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    pub low: u64,
    pub high: u64,
    pub scales: u64,
    pub super_scales: u64,
}

const _: () = assert!(size_of::<Planes>() == 32);

/// A matrix of a product, or some of its rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub weight: Planes,
    pub bias: u64,
    pub rows: i32,
    pub first_row: i32,
    pub matrix_rows: i32,
    pub start: i32,
}

const _: () = assert!(size_of::<Part>() == 56);

/// A matrix of a product of many rows, or some of its rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct GemmPart {
    pub weight: Planes,
    pub largest: u64,
    pub bias: u64,
    pub rows: i32,
    pub first_row: i32,
    pub matrix_rows: i32,
    pub start: i32,
}

const _: () = assert!(size_of::<GemmPart>() == 64);

params! {
    RepackParams, 48 {
        blocks: u64,
        planes: Planes,
        groups: i64,
    }
    EmbedParams, 64 {
        table: Planes,
        rows: u64,
        out: u64,
        cols: i32,
        chunks: i32,
        scale: f32,
        add: i32,
    }
    ElementwiseParams, 32 {
        x: u64,
        out: u64,
        count: i64,
        cap: f32,
        unused: i32,
    }
    GatherParams, 32 {
        x: u64,
        rows: u64,
        out: u64,
        width: i64,
    }
    NormParams, 64 {
        x: u64,
        weight: u64,
        bias: u64,
        out: u64,
        width: i32,
        x_stride: i32,
        out_stride: i32,
        segments: i32,
        eps: f32,
        centered: i32,
        rows: i32,
        unused: i32,
    }
    ProductParams, 304 {
        parts: [Part; 3],
        x: u64,
        x_rows: u64,
        norm_weight: u64,
        norm_bias: u64,
        groups: u64,
        experts: u64,
        shares: u64,
        out: u64,
        n_parts: i32,
        cols: i32,
        chunks: i32,
        tokens: i32,
        at_once: i32,
        x_stride: i32,
        out_stride: i32,
        slots_per_row: i32,
        ending: i32,
        activation: i32,
        choices: i32,
        centered: i32,
        eps: f32,
        limit: f32,
        alpha: f32,
        stages: i32,
        piece: i32,
        n_groups: i32,
    }
    PackParams, 72 {
        x: u64,
        order: u64,
        norm_weight: u64,
        norm_bias: u64,
        tokens16: u64,
        scales: u64,
        cols: i32,
        places: i32,
        slots_per_row: i32,
        piece: i32,
        centered: i32,
        eps: f32,
    }
    LargestParams, 48 {
        weight: Planes,
        largest: u64,
        pieces: i64,
    }
    GemmParams, 288 {
        parts: [GemmPart; 3],
        tokens16: u64,
        scales: u64,
        out: u64,
        tiles: u64,
        order: u64,
        n_parts: i32,
        cols: i32,
        chunks: i32,
        tokens: i32,
        places: i32,
        out_stride: i32,
        ending: i32,
        activation: i32,
        stages: i32,
        tile_tokens: i32,
        splits: i32,
        limit: f32,
        alpha: f32,
        unused: i32,
    }
    SortParams, 48 {
        experts: u64,
        order: u64,
        tiles: u64,
        first_slot: i32,
        slots: i32,
        n_experts: i32,
        places: i32,
        max_tiles: i32,
        tile_slots: i32,
    }
    ActivateParams, 56 {
        gate: u64,
        up: u64,
        out: u64,
        width: i32,
        gate_stride: i32,
        up_stride: i32,
        out_stride: i32,
        kind: i32,
        limit: f32,
        alpha: f32,
        unused: i32,
    }
    RotationsParams, 48 {
        positions: u64,
        is_long: u64,
        frequencies: u64,
        long_frequencies: u64,
        out: u64,
        pairs: i32,
        magnitude: f32,
    }
    RotateParams, 40 {
        qkv: u64,
        rotations: u64,
        stride: i32,
        heads: i32,
        head_dim: i32,
        pairs: i32,
        interleaved: i32,
        unused: i32,
    }
    AppendParams, 80 {
        qkv: u64,
        keys: u64,
        values: u64,
        positions: u64,
        sequences: u64,
        table_offsets: u64,
        blocks: u64,
        stride: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        padded_dim: i32,
        unused: i32,
    }
    AttendParams, 144 {
        qkv: u64,
        keys: u64,
        values: u64,
        positions: u64,
        sequences: u64,
        table_offsets: u64,
        blocks: u64,
        sinks: u64,
        out: u64,
        partials: u64,
        qkv_stride: i32,
        out_stride: i32,
        heads: i32,
        kv_heads: i32,
        head_dim: i32,
        padded_dim: i32,
        scale: f32,
        soft_cap: f32,
        window: i32,
        splits: i32,
        rotations: u64,
        pairs: i32,
        interleaved: i32,
        fresh: i32,
        unused: i32,
    }
    AttendTensorParams, 152 {
        attend: AttendParams,
        arrived: u64,
    }
    AttendPromptParams, 120 {
        qkv: u64,
        keys: u64,
        values: u64,
        positions: u64,
        sequences: u64,
        table_offsets: u64,
        blocks: u64,
        sinks: u64,
        out: u64,
        qkv_stride: i32,
        out_stride: i32,
        rows: i32,
        tile_rows: i32,
        heads: i32,
        kv_heads: i32,
        tile_heads: i32,
        head_dim: i32,
        padded_dim: i32,
        scale: f32,
        soft_cap: f32,
        window: i32,
    }
    RouteParams, 48 {
        logits: u64,
        experts: u64,
        weights: u64,
        rows: i32,
        n_experts: i32,
        top_k: i32,
        softmax_before: i32,
        renormalize: i32,
        unused: i32,
    }
    GroupParams, 32 {
        experts: u64,
        groups: u64,
        slots: i32,
        n_experts: i32,
        group_size: i32,
        max_groups: i32,
    }
    RouterParams, 392 {
        product: ProductParams,
        route: RouteParams,
        group: GroupParams,
        arrived: u64,
    }
    CombineParams, 32 {
        x: u64,
        weights: u64,
        out: u64,
        width: i32,
        top_k: i32,
    }
    BandwidthParams, 24 {
        data: u64,
        out: u64,
        pieces: i64,
    }
}
