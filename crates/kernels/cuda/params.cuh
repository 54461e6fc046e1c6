// The parameters of every kernel. `src/params.rs` has the same structures; both sides assert the sizes.
#pragma once
#include "common.cuh"

namespace oxgpt {

struct RepackParams {
    const uint8_t* blocks;  // as the file has them
    uint8_t* low;
    uint8_t* high;
    uint8_t* scales;
    uint8_t* super;
    int64_t groups;  // of 32 values
};
static_assert(sizeof(RepackParams) == 48, "shared with src/params.rs");

struct EmbedParams {
    Planes table;
    const uint32_t* rows;  // the row of the table for each row of out
    float* out;
    int32_t cols;
    int32_t chunks;  // of one row of the table
    float scale;
    int32_t add;  // to what out has
};
static_assert(sizeof(EmbedParams) == 64, "shared with src/params.rs");

struct ElementwiseParams {
    const float* x;
    float* out;
    int64_t count;
    float cap;
    int32_t unused;
};
static_assert(sizeof(ElementwiseParams) == 32, "shared with src/params.rs");

struct GatherParams {
    const float* x;
    const uint32_t* rows;
    float* out;
    int64_t width;
};
static_assert(sizeof(GatherParams) == 32, "shared with src/params.rs");

struct NormParams {
    const float* x;
    const float* weight;
    const float* bias;  // null without one
    float* out;
    int32_t width;       // of what is normed
    int32_t x_stride;    // from row to row
    int32_t out_stride;
    int32_t segments;    // normed one by one in each row, side by side, with the same weight
    float eps;
    int32_t centered;  // LayerNorm; else RMSNorm
    int32_t rows;
    int32_t unused;
};
static_assert(sizeof(NormParams) == 64, "shared with src/params.rs");

// A matrix of a product, or some of its rows.
struct Part {
    Planes weight;
    const float* bias;    // null without one
    int32_t rows;         // outputs
    int32_t first_row;    // of the matrix (of one expert)
    int32_t matrix_rows;  // of the matrix (of one expert)
    int32_t start;        // where the outputs begin in a row of out
};
static_assert(sizeof(Part) == 56, "shared with src/params.rs");

struct ProductParams {
    Part parts[3];
    const float* x;
    const uint32_t* x_rows;    // the row of x for each token; null where they are the same
    const float* norm_weight;  // null where x is not normed first
    const float* norm_bias;    // null without one
    const int32_t* groups;     // null, or see moe.cu: which rows of x meet which expert's weights
    const int32_t* experts;    // of each slot, where they are combined
    const float* shares;       // of each slot
    float* out;
    int32_t n_parts;
    int32_t cols;
    int32_t chunks;         // of one row of the weights
    int32_t tokens;
    int32_t at_once;        // tokens of a block, or of a group at the most
    int32_t x_stride;
    int32_t out_stride;
    int32_t slots_per_row;  // with groups: slots that share a row of x
    int32_t ending;         // see matvec.cuh
    int32_t activation;
    int32_t choices;        // slots of a row, where they are combined
    int32_t centered;       // LayerNorm; else RMSNorm
    float eps;
    float limit;            // of the clamped SwiGLU
    float alpha;
    int32_t stages;         // of the ring in shared memory, see ring.cuh
    int32_t piece;          // blocks of a row that are fetched at once
    int32_t n_groups;       // with groups of more than one slot, that blocks share
};
static_assert(sizeof(ProductParams) == 304, "shared with src/params.rs");

// Of a tile of tokens of one expert: expert, first place in the order of slots, how many, up to TILE_SLOTS.
constexpr int TILE_WORDS = 3, TILE_SLOTS = 256;

struct PackParams {
    const float* x;
    const int32_t* order;      // null, or the slot of each place, or -1
    const float* norm_weight;  // null where x is not normed first
    const float* norm_bias;    // null without one
    void* tokens16;            // halves
    float* scales;             // of each place, to multiply results with
    int32_t cols;
    int32_t places;
    int32_t slots_per_row;  // with an order: slots that share a row of x
    int32_t piece;          // weights that a thread reads at once, see halves.cuh
    int32_t centered;       // LayerNorm; else RMSNorm
    float eps;
};
static_assert(sizeof(PackParams) == 72, "shared with src/params.rs");

struct LargestParams {
    Planes weight;
    uint32_t* largest;  // bits of the largest magnitude
    int64_t pieces;     // that `Weights` reads at once
};
static_assert(sizeof(LargestParams) == 48, "shared with src/params.rs");

// A matrix of a product of many tokens, or some of its rows.
struct GemmPart {
    Planes weight;
    const uint32_t* largest;  // bits of the largest magnitude of the weights
    const float* bias;        // null without one
    int32_t rows;             // outputs
    int32_t first_row;        // of the matrix (of one expert)
    int32_t matrix_rows;      // of the matrix (of one expert)
    int32_t start;            // where the outputs begin in a row of out
};
static_assert(sizeof(GemmPart) == 64, "shared with src/params.rs");

struct GemmParams {
    GemmPart parts[3];
    const void* tokens16;  // see pack.cu
    const float* scales;
    float* out;
    const int32_t* tiles;  // null, or see sort_slots.cu
    const int32_t* order;  // the slots of the tiles
    int32_t n_parts;
    int32_t cols;
    int32_t chunks;        // of one row of the weights
    int32_t tokens;
    int32_t places;        // that tokens16 has for each step along K
    int32_t out_stride;
    int32_t ending;        // see gemm.cuh
    int32_t activation;
    int32_t stages;        // of the ring in shared memory
    int32_t tile_tokens;   // without tiles
    int32_t splits;        // blocks that share K
    float limit;           // of the clamped SwiGLU
    float alpha;
    int32_t unused;
};
static_assert(sizeof(GemmParams) == 288, "shared with src/params.rs");

struct SortParams {
    const int32_t* experts;  // of each slot
    int32_t* order;
    int32_t* tiles;
    int32_t first_slot;
    int32_t slots;
    int32_t n_experts;
    int32_t places;  // that order has
    int32_t max_tiles;
    int32_t tile_slots;  // of one tile at most
};
static_assert(sizeof(SortParams) == 48, "shared with src/params.rs");

struct ActivateParams {
    const float* gate;
    const float* up;  // null without a second input
    float* out;
    int32_t width;
    int32_t gate_stride;
    int32_t up_stride;
    int32_t out_stride;
    int32_t kind;
    float limit;  // of the clamped SwiGLU
    float alpha;
    int32_t unused;
};
static_assert(sizeof(ActivateParams) == 56, "shared with src/params.rs");

struct RotationsParams {
    const uint32_t* positions;
    const uint32_t* is_long;         // of each row
    const float* frequencies;
    const float* long_frequencies;   // null without others for long sequences
    float* out;                      // (rows, 2 pairs)
    int32_t pairs;
    float magnitude;
};
static_assert(sizeof(RotationsParams) == 48, "shared with src/params.rs");

struct RotateParams {
    float* qkv;
    const float* rotations;
    int32_t stride;  // of a row of qkv
    int32_t heads;   // of queries and keys
    int32_t head_dim;
    int32_t pairs;
    int32_t interleaved;
    int32_t unused;
};
static_assert(sizeof(RotateParams) == 40, "shared with src/params.rs");

struct AppendParams {
    const float* qkv;
    void* keys;
    void* values;
    const uint32_t* positions;
    const uint32_t* sequences;      // of each row
    const uint32_t* table_offsets;  // of each sequence
    const uint32_t* blocks;
    int32_t stride;                 // of a row of qkv
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t padded_dim;
    int32_t unused;
};
static_assert(sizeof(AppendParams) == 80, "shared with src/params.rs");

struct AttendParams {
    const float* qkv;
    void* keys;
    void* values;
    const uint32_t* positions;
    const uint32_t* sequences;
    const uint32_t* table_offsets;
    const uint32_t* blocks;
    const float* sinks;  // null without
    float* out;
    float* partials;  // of the splits, when each has a block of its own
    int32_t qkv_stride;
    int32_t out_stride;
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t padded_dim;
    float scale;
    float soft_cap;  // 0 without
    int32_t window;  // 0 without
    int32_t splits;  // that have blocks of their own
    const float* rotations;  // of each row, null without
    int32_t pairs;
    int32_t interleaved;
    int32_t fresh;  // keys and values of the rows are not stored yet
    int32_t unused;
};
static_assert(sizeof(AttendParams) == 144, "shared with src/params.rs");

struct AttendPromptParams {
    const float* qkv;
    const __half* keys;
    const __half* values;
    const uint32_t* positions;
    const uint32_t* sequences;
    const uint32_t* table_offsets;
    const uint32_t* blocks;
    const float* sinks;  // null without
    float* out;
    int32_t qkv_stride;
    int32_t out_stride;
    int32_t rows;
    int32_t tile_rows;
    int32_t heads;
    int32_t kv_heads;
    int32_t tile_heads;
    int32_t head_dim;
    int32_t padded_dim;
    float scale;
    float soft_cap;  // 0 without
    int32_t window;  // 0 without
};
static_assert(sizeof(AttendPromptParams) == 120, "shared with src/params.rs");

struct RouteParams {
    const float* logits;
    int32_t* experts;  // (rows, top_k)
    float* weights;    // (rows, top_k)
    int32_t rows;
    int32_t n_experts;
    int32_t top_k;
    int32_t softmax_before;  // over all experts, before the choice; else over the chosen
    int32_t renormalize;
    int32_t unused;
};
static_assert(sizeof(RouteParams) == 48, "shared with src/params.rs");

struct GroupParams {
    const int32_t* experts;  // of each slot
    int32_t* groups;
    int32_t slots;
    int32_t n_experts;
    int32_t group_size;
    int32_t max_groups;
};
static_assert(sizeof(GroupParams) == 32, "shared with src/params.rs");

struct RouterParams {
    ProductParams product;  // stores the logits
    RouteParams route;
    GroupParams group;
    uint32_t* arrived;  // blocks that have ended; 0 before and after a launch
};
static_assert(sizeof(RouterParams) == 392, "shared with src/params.rs");

struct CombineParams {
    const float* x;        // (rows * top_k, width)
    const float* weights;  // (rows, top_k)
    float* out;            // (rows, width), added to
    int32_t width;
    int32_t top_k;
};
static_assert(sizeof(CombineParams) == 32, "shared with src/params.rs");

struct BandwidthParams {
    const uint8_t* data;
    uint32_t* out;
    int64_t pieces;  // of 16 bytes
};
static_assert(sizeof(BandwidthParams) == 24, "shared with src/params.rs");

}  // namespace oxgpt
