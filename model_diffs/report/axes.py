"""The axes of the signature: what each asks, and how its numbers and figures are read."""

from model_diffs.report.signature import Axis, Figure

MAGNITUDE = Axis(
    "magnitude",
    "Magnitude",
    "How much of the weights did the intervention change?",
    "Relative ‖ΔW‖ sets the size of the whole change against the size of the base's weights. The "
    "changed share says how many entries are stored otherwise than before. A small change is no "
    "shallow one by itself, but a model that was made anew cannot have a small one.",
    (1, 2),
    (
        Figure("{comparison}/param_plots/layer_locality_mlp.png", "‖ΔW‖/‖W‖ by block, MLP"),
        Figure("{comparison}/param_plots/layer_locality_attn.png", "‖ΔW‖/‖W‖ by block, attention"),
    ),
)
LOCATION = Axis(
    "location",
    "Location",
    "Where in the model does the change lie?",
    "The ratio compares how much MLPs and attention changed, each relative to its own weights: 1 "
    "says both alike. The depth is that up to which half of the blocks' ‖ΔW‖² lies: one half for "
    "a change that is spread evenly, near 0 or 1 for one at an end.",
    (1, 6),
    (
        Figure("{comparison}/mlp_attn_analysis/mlp_vs_attn_magnitude.png", "MLP beside attention"),
        Figure("{comparison}/mlp_attn_analysis/mlp_vs_attn_detailed.png", "The same in detail"),
    ),
)
GEOMETRY = Axis(
    "geometry",
    "Geometry",
    "How many directions does the change use, and which?",
    "Few directions with much of ‖ΔW‖² are a nudge; many are a rewrite. An alignment of 1 says "
    "that a matrix's main directions stayed where they were. Null-space energy sets what ΔW writes "
    "outside the directions that W uses against what a random change of that size would: below 1 "
    "it works inside them.",
    (1, 7, 10),
    (
        Figure("{comparison}/null_space_analysis/null_space_visualization.png", "Rank and angles"),
        Figure("{comparison}/mlp_nullspace/mlp_nullspace_alignment.png", "Inside W's own spaces"),
        Figure("{comparison}/param_plots/stable_rank_mlp.png", "Stable rank by block, MLP"),
    ),
)
FUNCTION = Axis(
    "function",
    "Function",
    "How far do hidden states move, on forget and on retain texts?",
    "All four kinds of number are means over the outputs of the blocks. A filtered model moves "
    "states on both kinds of text, since it is another model. Forget states that move farther than "
    "under filtering, while retain states stay, are thrown out of the way rather than computed "
    "otherwise; so are texts of the two kinds that are driven apart.",
    (4, 5, 8, 9),
    (
        Figure("{comparison}/activation_plots/activation_diffs_forget.png", "‖Δh‖, forget texts"),
        Figure("{comparison}/activation_plots/activation_diffs_retain.png", "‖Δh‖, retain texts"),
        Figure(
            "{comparison}/activation_separation/activation_separation_analysis.png",
            "Separation of forget and retain texts",
        ),
        Figure("{comparison}/activation_covariance/covariance_analysis.png", "Spectra of states"),
    ),
)
PRECISION = Axis(
    "precision",
    "Precision",
    "Is the change aimed at forget inputs?",
    "Both numbers are forget over retain, so 1 is a change that treats both kinds of text alike. "
    "Row space: do inputs lie where ΔW reads? Effect: how large is ΔW x beside W x?",
    (11,),
    (Figure("{comparison}/row_space_projection/row_space_projection.png", "Inputs against ΔW"),),
)
STABILITY = Axis(
    "stability",
    "Stability",
    "Does the model react more or less to small disturbances of its input?",
    "The changed model over the base, so 1 is no change. Response to noise: random disturbances of "
    "the embeddings. Jacobian norm: the worst one. Below 1 the model became smoother around these "
    "texts, as where everything is sent to one place; above 1 rougher, as where it knows little.",
    (12,),
    (Figure("{comparison}/lipschitzness/lipschitzness_analysis.png", "Sensitivity by text kind"),),
)
LOCALISATION = Axis(
    "localisation",
    "Localisation",
    "At which depth did it become easier or harder to tell forget from retain texts?",
    "The change of a linear probe's AUC, averaged over each third of the blocks. Probes find the "
    "topic, not the knowledge: no change is usual, also where everything was forgotten.",
    (13,),
    (Figure("{model}/linear_probes/linear_probe_analysis.png", "Probes by depth"),),
)
KNOWLEDGE = Axis(
    "knowledge",
    "Knowledge",
    "What does the model still answer, at its output and inside?",
    "Shares of four-choice questions answered rightly; guessing gives 0.25. Adjacent and general "
    "questions say what forgetting cost. Inside: hazard questions read from the outputs of all "
    "blocks but the last, as if the blocks above were not there. Knowledge that is higher inside "
    "than in the filtered model is hidden rather than gone.",
    (13,),
    (Figure("{model}/linear_probes/knowledge_by_layer.png", "Knowledge by depth"),),
)
BRITTLENESS = Axis(
    "brittleness",
    "Brittleness",
    "Does fine-tuning on other facts bring back what was forgotten?",
    "The attack never states the facts that are asked. The share is that of the gap to the base "
    "which came back, at the rate and step that are worst while the model stays whole. 0 is what a "
    "model that never learned has to give; 1 is everything.",
    (14,),
    (
        Figure("relearning/relearning.png", "Held-out knowledge over the steps of the attack"),
        Figure("relearning/relearning_by_rate.png", "The same for each learning rate"),
    ),
)
AXES = (
    *(MAGNITUDE, LOCATION, GEOMETRY, FUNCTION, PRECISION),
    *(STABILITY, LOCALISATION, KNOWLEDGE, BRITTLENESS),
)
