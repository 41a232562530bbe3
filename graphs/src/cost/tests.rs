use super::{Arenas, Cost, CostError, Freed, Held, Keep, Layout, Sizes};
use crate::graph::Weight;
use crate::pass::{self, Lower, Precision, Target};
use crate::{DType, Dim, Graph, Value, dims};

fn lowered(build: impl FnOnce(&Graph)) -> Graph {
    let graph = Graph::new();
    // A layer of a block: what is outside of them is treated otherwise.
    graph.enter("blocks.0.layer".into());
    build(&graph);
    graph.leave();
    let graph = pass::run(&mut Precision::new(DType::F32, None), &graph).expect("a sound graph");
    pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a sound graph")
}

fn cost(graph: &Graph, sizes: &[(&'static str, usize)]) -> Cost {
    kept(graph, sizes, Layout::Mapped)
}

fn kept(graph: &Graph, sizes: &[(&'static str, usize)], layout: Layout) -> Cost {
    let keep = Keep { weights: layout, freed: Freed::of(layout, false, Arenas::Usual), ..Keep::default() };
    Cost::of(graph, &Sizes::new(sizes.iter().copied()), 1, keep).expect("all sizes are known")
}

fn input(graph: &Graph, shape: Vec<Dim>) -> Value<'_> {
    graph.input("x", DType::F32, shape)
}

/// A weight in `float16`, as the graph is built with it.
fn half<'g>(graph: &'g Graph, name: &str, shape: &[usize]) -> Value<'g> {
    graph.weight(Weight::whole(name, DType::F16, shape), DType::F32)
}

#[test]
fn operations_are_counted_by_hand() {
    let batch = &Dim::named("batch");
    let product = lowered(|g| g.output("y", input(g, dims![batch, 5, 32]).linear(half(g, "w", &[48, 32]), None)));
    assert_eq!(cost(&product, &[("batch", 2)]).flops(), 2 * (2 * 5) * 48 * 32);

    let conv = lowered(|g| {
        let x = input(g, dims![batch, 8, 4, 6, 7]);
        g.output("y", x.conv(half(g, "w", &[16, 8, 3, 3, 3]), None, [1, 1, 1], [[0, 0], [1, 1], [1, 1]]));
    });
    assert_eq!(cost(&conv, &[("batch", 3)]).flops(), 2 * 3 * (2 * 6 * 7) * 16 * (8 * 27));

    let attention = lowered(|g| {
        let x = input(g, dims![batch, 10, 64]);
        let few = x.slice(1, 0, 4);
        g.output("y", few.attention(x, x, None, 4, 1.0));
    });
    // For each of 4 queries: 10 scores of 64 products, then 64 sums of 10.
    assert_eq!(cost(&attention, &[("batch", 1)]).flops(), 2 * 4 * (10 * 64 + 64 * 10));
}

#[test]
fn what_is_held_at_the_peak_is_told() {
    let n = &Dim::named("n");
    let graph = lowered(|g| {
        let x = input(g, dims![n, 4]);
        let a = x + 1.0;
        let b = g.concat(1, &[a, a, a]);
        let c = b.reshape(dims![&(n * 3), 4]) * 2.0;
        g.output("c", c.slice(0, 0, 1));
    });
    let peak = cost(&graph, &[("n", 100)]).peak;
    // The input, three of it, and three of it doubled; `a` is gone.
    assert_eq!((peak.bytes, peak.at.as_str()), (1600 + 4800 + 4800, "blocks.0.layer/Mul"));
    let held: Vec<_> = peak.held.iter().map(|h| (h.what.as_str(), h.is_input, h.bytes)).collect();
    assert_eq!(held, [("blocks.0.layer/Concat", false, 4800), ("blocks.0.layer/Mul", false, 4800), ("x", true, 1600)]);
}

#[test]
fn outputs_are_held_until_the_end() {
    let graph = lowered(|g| {
        let x = input(g, dims![100]);
        let a = x + 1.0;
        g.output("early", a);
        let b = a + 1.0;
        let c = b + 1.0;
        g.output("late", c + 1.0);
    });
    let peak = cost(&graph, &[]).peak;
    assert_eq!(peak.bytes, 4 * 400);
    let kept: Vec<_> = peak.held.iter().filter(|held| held.is_output).map(|held| held.bytes).collect();
    assert_eq!(kept[0], 400);
}

#[test]
fn weights_are_widened_one_after_the_other() {
    let graph = lowered(|g| {
        let mut x = input(g, dims![1, 64]);
        for i in 0..5 {
            x = x.linear(half(g, &format!("w{i}"), &[64, 64]), None);
        }
        g.output("y", x);
    });
    let cost = cost(&graph, &[]);
    assert_eq!(cost.weights, 5 * 64 * 64 * 2);
    // One of them, and rows before and after it.
    assert_eq!(cost.peak.bytes, 64 * 64 * 4 + 3 * 64 * 4, "{:?}", cost.peak);
    let of_weight = |held: &Held| held.what.ends_with("/Cast");
    assert_eq!(cost.peak.held.iter().filter(|held| of_weight(held)).count(), 1);
}

#[test]
fn convolutions_of_weights_are_widened_one_after_the_other() {
    let graph = lowered(|g| {
        let mut x = input(g, dims![1, 16, 1, 2, 2]);
        for i in 0..3 {
            x = x.conv(half(g, &format!("w{i}"), &[16, 16, 1, 1, 1]), None, [1; 3], [[0; 2]; 3]);
        }
        g.output("y", x);
    });
    let cost = cost(&graph, &[]);
    assert_eq!(cost.peak.held.iter().filter(|held| held.what.ends_with("/Cast")).count(), 1, "{:?}", cost.peak);
}

#[test]
fn a_size_without_a_number_is_named() {
    let graph = lowered(|g| g.output("y", input(g, dims![&Dim::named("rows"), 4]) + 1.0));
    assert_eq!(Cost::of(&graph, &Sizes::default(), 1, Keep::default()), Err(CostError::Size("rows".into())));
    let raw = Graph::new();
    raw.output("y", input(&raw, dims![4]) + 1.0);
    assert_eq!(Cost::of(&raw, &Sizes::default(), 1, Keep::default()), Err(CostError::Form("/Add".into())));
}

#[test]
fn weights_that_are_widened_once_stay_and_are_there_twice_while_they_are_arranged() {
    let n = &Dim::named("n");
    let graph = lowered(|g| {
        let x = input(g, dims![n, 64]);
        let h = x.linear(half(g, "first", &[96, 64]), Some(half(g, "bias", &[96])));
        g.output("y", h.linear(half(g, "second", &[64, 96]), None));
    });
    let (mapped, widened) = (kept(&graph, &[("n", 2)], Layout::Mapped), kept(&graph, &[("n", 2)], Layout::Widened));
    let casts = |cost: &Cost| cost.nodes.iter().filter(|node| node.op == "Cast").count();
    assert_eq!((casts(&mapped), casts(&widened)), (3, 0));
    assert_eq!((mapped.packed, widened.packed), (0, 4 * (96 * 64 + 96 + 64 * 96)));
    assert_eq!((mapped.weights, widened.weights), (2 * (96 * 64 + 96 + 64 * 96), mapped.weights));
    // A run takes little with so few rows, so loading the larger of two equal weights takes most.
    assert_eq!((widened.peak.bytes, widened.peak.at.as_str()), (4 * 96 * 64, "loading"));
    // What is made is kept in an arena, which takes more than is in use at once: 384,000 bytes and 256,000 are pieces of a region.
    let many = kept(&graph, &[("n", 1000)], Layout::Widened).peak;
    assert_eq!((many.bytes, many.at.as_str()), (4 * 1000 * (64 + 96 + 64), "blocks.0.layer/Gemm"));
    assert!(many.held.iter().any(|held| held.what == "gaps between these"));
}

#[test]
fn weights_for_one_row_are_not_copied() {
    for stored in [DType::F16, DType::F32] {
        let graph = lowered(|g| {
            let weight = g.weight(Weight::whole("w", stored, &[96, 64]), DType::F32);
            g.output("y", input(g, dims![1, 64]).linear(weight, None));
        });
        let widened = kept(&graph, &[], Layout::Widened);
        assert_eq!(widened.packed, 0, "{stored}");
        let casts = widened.nodes.iter().filter(|node| node.op == "Cast").count();
        assert_eq!(casts, usize::from(stored == DType::F16));
    }
}

#[test]
fn weights_of_float32_are_copied_only_where_kernels_arrange_them() {
    let n = &Dim::named("n");
    let graph = lowered(|g| {
        let weight = g.weight(Weight::whole("w", DType::F32, &[96, 64]), DType::F32);
        g.output("y", input(g, dims![n, 64]).linear(weight, None));
    });
    let packed =
        [Layout::Mapped, Layout::Packed, Layout::Widened].map(|layout| kept(&graph, &[("n", 2)], layout).packed);
    assert_eq!(packed, [0, 4 * 96 * 64, 4 * 96 * 64]);
}
