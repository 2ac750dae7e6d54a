"""The columns of the signature, in order."""

from model_diffs.report.signature import Measure


def _weights() -> list[Measure]:
    return [
        Measure(
            *("relative_change", "magnitude", "relative ‖ΔW‖"),
            "Size of the weight change over the size of the base's weights, all matrices together.",
            *("ratio", 0.0),
        ),
        Measure(
            *("changed_share", "magnitude", "changed entries"),
            "Share of the matrices' entries that are stored otherwise than in the base.",
            *("share", 0.0),
        ),
        Measure(
            *("mlp_attention_ratio", "location", "MLP over attention"),
            "Relative ‖ΔW‖ of all MLPs over that of all attention.",
            *("ratio", None, True),
        ),
        Measure(
            *("half_depth", "location", "depth of half ‖ΔW‖²"),
            "Depth up to which half of the blocks' ‖ΔW‖² lies, as a share of all blocks.",
            *("share", None),
        ),
        Measure(
            *("stable_rank", "geometry", "stable rank of ΔW"),
            "‖ΔW‖² over its largest squared singular value; mean over the blocks' matrices, each "
            "by its ‖ΔW‖².",
            *("rank", None, True),
        ),
        Measure(
            *("effective_rank", "geometry", "effective rank of ΔW"),
            "Directions with 99 % of a matrix's ‖ΔW‖²; mean over the blocks' matrices, each by its "
            "‖ΔW‖².",
            *("rank", None, True),
        ),
        Measure(
            *("top10_share", "geometry", "top ten directions"),
            "Share of a matrix's ‖ΔW‖² in its ten largest directions; mean over the blocks' "
            "matrices, each by its ‖ΔW‖².",
            *("share", None),
        ),
        Measure(
            *("subspace_alignment", "geometry", "subspaces kept"),
            "Mean cosine of the angles between the leading left subspaces of W before and after, "
            "over the blocks' matrices.",
            *("share", 1.0),
        ),
        Measure(
            *("nullspace_ratio", "geometry", "null-space energy"),
            "Energy that the MLPs' ΔW writes outside W's column space, over that of a random ΔW.",
            *("ratio", None, True),
        ),
    ]


def _states() -> list[Measure]:
    mean = "mean over the outputs of all blocks"
    return [
        *(
            Measure(
                *(f"dh_{split}", "function", f"‖Δh‖/‖h‖, {split}"),
                f"How far hidden states of {split} texts moved, relative to their norm; {mean}.",
                *("ratio", 0.0),
            )
            for split in ("forget", "retain")
        ),
        Measure(
            *("separation_change", "function", "separation, change"),
            f"Change of the cosine distance between forget and retain texts; {mean}.",
            *("change", 0.0),
        ),
        *(
            Measure(
                *(f"covariance_{split}", "function", f"spectrum moved, {split}"),
                f"How far the spectrum of the states of {split} texts moved in shape: Wasserstein "
                f"distance of spectra scaled to mean 1; {mean}.",
                *("ratio", 0.0),
            )
            for split in ("forget", "retain")
        ),
        *(
            Measure(
                *(f"{key}_selectivity", "precision", label),
                f"{meaning}, forget over retain texts; mean over the changed MLP matrices.",
                *("ratio", None, True),
            )
            for key, label, meaning in (
                ("row_space", "row space, forget/retain", "How much inputs lie where ΔW reads"),
                ("effect", "effect, forget/retain", "Size of ΔW x beside W x"),
            )
        ),
        *(
            Measure(
                *(f"{key}_{split}", "stability", f"{name}, {split}"),
                f"{meaning} of {split} texts, changed model over base.",
                *("ratio", 1.0, True),
            )
            for key, name, meaning in (
                ("lipschitz", "noise response", "Mean response to random noise on the embeddings"),
                ("jacobian", "Jacobian norm", "Mean norm of the Jacobian by the embeddings"),
            )
            for split in ("forget", "retain")
        ),
    ]


def _questions() -> list[Measure]:
    return [
        *(
            Measure(
                *(f"probe_{third}", "localisation", f"probe AUC, {third}, change"),
                "Change of the AUC of a probe for forget against retain texts; mean over the "
                f"outputs of the {third} third of the blocks.",
                *("change", 0.0),
            )
            for third in ("early", "middle", "late")
        ),
        *(
            Measure(
                *(f"{domain}_accuracy", "knowledge", f"{domain} accuracy"),
                f"Share of {domain} questions answered rightly at the output; guessing gives 0.25.",
                *("accuracy", None),
            )
            for domain in ("hazard", "adjacent", "general")
        ),
        Measure(
            *("hazard_inside", "knowledge", "hazard accuracy inside"),
            "Share of hazard questions answered rightly from the inside of the model; mean over "
            "the outputs of all blocks but the last.",
            *("accuracy", None),
        ),
        Measure(
            *("recovered_share", "brittleness", "recovered share"),
            "Share of the gap to the base in held-out hazard questions that relearning brings back "
            "at the worst rate and step.",
            *("share", None),
        ),
        Measure(
            *("steps_to_half", "brittleness", "steps to half"),
            "First measured step of the attack at which half of the gap is back, at the rate where "
            "that comes first.",
            *("steps", None, True),
        ),
    ]


MEASURES = (*_weights(), *_states(), *_questions())
