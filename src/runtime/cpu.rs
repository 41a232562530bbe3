//! How graphs run on the processor.

pub use cogvx_graphs::cost::Arenas;
use ort::session::builder::GraphOptimizationLevel;

use super::{Layout, Traits};

/// How graphs run on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Widen weights to `float32` and arrange them as the kernels read them, once, when a graph is loaded: faster, at four bytes a
    /// parameter of memory that no file backs. Graphs of convolutions are left as they are: their kernels read weights as they come.
    pub prepack: bool,
    /// Where the memory of tensors that are done is kept for those to come instead of given back: what is fetched anew is cleared by
    /// the system first, which takes a quarter of the time in which the VAE decodes. What is kept lies in pieces, so it takes up to
    /// 2.4 times the memory that is in use at once.
    pub arenas: Arenas,
    /// Whose kernels run text encoder and transformer.
    pub kernels: Kernels,
}

/// Whose kernels run what cogvx has kernels for, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// cogvx's, on processors that they were measured to be faster on.
    #[default]
    Fastest,
    /// cogvx's, whatever the processor.
    Own,
    /// ONNX Runtime's.
    Plain,
}

impl CpuOptions {
    /// Whether cogvx's own kernels run what they can of a model that is quantized or is not.
    #[must_use]
    pub fn has_own_kernels(self, quantized: bool) -> bool {
        match self.kernels {
            Kernels::Fastest => cogvx_kernels::pays(quantized),
            Kernels::Own => true,
            Kernels::Plain => false,
        }
    }

    /// How weights of a graph are kept.
    pub(super) fn layout(self, traits: Traits<'_>) -> Layout {
        if self.prepack && !traits.convolves { Layout::Widened } else { traits.layout }
    }
}

/// Whether products of bytes are added in 32 bits. Where the processor lacks VNNI, ONNX Runtime adds pairs of them in sixteen, which
/// saturate, unless an optimizer of its extended level (`Avx2WeightS8ToU8Transformer`) finds [`EXACT`] and makes the weights `uint8`.
pub(super) fn adds_wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

/// Asks for products of bytes that do not saturate.
pub(super) const EXACT: (&str, &str) = ("session.x64quantprecision", "1");

/// Optimizers that would hold a second, `float32` copy of 16-bit weights.
const COPYING: &str = "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer";

/// Every optimizer of the basic level of ONNX Runtime 1.31 but `ConstantFolding`, which widens weights: graphs are final.
const ALL_BUT_FOLDING: &str = "Level1_RuleBasedTransformer;CommonSubexpressionElimination;ConstantSharing;DoubleQDQPairsRemover;\
    EnsureUniqueDQForNodeUnit;FreeDimensionOverrideTransformer;FuseFp16InitializerToFp32NodeTransformer;\
    GatherSliceToSplitFusion;GatherToSliceFusion;GeluFusionL1;LayerNormFusionL1;MatMulAddFusion;PropagateCastOps;\
    QDQPropagationTransformer;ReshapeFusion;RocmBlasAltImpl;TransposeOptimizer;WeightBiasQuantization;WhereDummyDq";

/// Every optimizer of the extended level of ONNX Runtime 1.31 but the one that makes products of bytes exact.
const ALL_BUT_EXACT: &str = "AttentionFusion;BiasDropoutFusion;BiasGeluFusion;BiasSkipLayerNormFusion;BiasSoftmaxFusion;\
    ConvActivationFusion;DQMatMulNBitsFusion;DynamicQuantizeMatMulFusion;EmbedLayerNormFusion;FastGeluFusion;GeluFusionL2;\
    GemmActivationFusion;GqaValueLayoutTransformer;GroupQueryAttentionFusion;GroupQueryAttentionPreNormFusion;LayerNormFusionL2;\
    Level2_RuleBasedTransformer;MatMulActivationFusion;MatMulIntegerToFloatFusion;MatMulNBitsFusion;MatMulNBitsMlpFusion;\
    MatMulNBitsQkvFusion;MatMulScaleFusion;MatmulTransposeFusion;QDQFinalCleanupTransformer;QDQS8ToU8Transformer;\
    QDQSelectorActionTransformer;QuickGeluFusion;SimplifiedLayerNormFusion;SkipLayerNormFusion;SliceConcatToSpaceToDepthFusion";

/// The level at which what keeps weights so, and multiplies them exactly, is found.
pub(super) fn optimization(layout: Layout, on_cpu: bool) -> GraphOptimizationLevel {
    match layout {
        _ if on_cpu && !adds_wide() => GraphOptimizationLevel::Level2,
        Layout::Widened => GraphOptimizationLevel::Level1,
        Layout::Packed | Layout::Mapped => GraphOptimizationLevel::Disable,
    }
}

/// The optimizers of all levels that are not wanted.
pub(super) fn disabled(layout: Layout) -> String {
    let folding = if layout == Layout::Widened { "" } else { COPYING };
    [ALL_BUT_FOLDING, ALL_BUT_EXACT, folding].join(";")
}
