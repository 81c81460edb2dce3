"""What guie-models offers."""

from __future__ import annotations

from guie_core import Entry, Kind, hookimpl


@hookimpl
def guie_kinds() -> list[Kind]:
    return [
        Kind("backbones", "From images [B, 3, h, w] to features [B, D]"),
        Kind("views", "From a decoded image [3, H, W] to a backbone's input [3, h, w]"),
        Kind("heads", "From features and size values to an embedding [B, E]"),
        Kind("losses", "From embeddings and labels to a scalar"),
        Kind("optimizers", "From gradients to better weights"),
        Kind("exporters", "From an embedder to a file that runs without guie, verified on real images"),
    ]


@hookimpl
def guie_backbones() -> list[Entry]:
    return [
        Entry("timm/*", "guie_models.backbones:TimmBackbone", "Any model of timm, pooled features"),
        Entry(
            "open_clip/*",
            "guie_models.backbones:OpenClipBackbone",
            "Any visual tower of open_clip, projected features that are not normalised",
        ),
        Entry("concat", "guie_models.backbones:Concatenated", "Features of several backbones, one after the other"),
    ]


@hookimpl
def guie_views() -> list[Entry]:
    return [
        Entry("Squash", "guie_models.views:Squash", "The whole image resized to a square; may pad and crop first"),
        Entry(
            "CenterCrop", "guie_models.views:CenterCrop", "The centred square, aspect kept, as networks are published"
        ),
        Entry("RandomSquareCrop", "guie_models.views:RandomSquareCrop", "A random square of 0.9 to 1.0 of the area"),
    ]


@hookimpl
def guie_heads() -> list[Entry]:
    heads = "guie_models.heads"
    return [
        Entry("BatchNormLinear", f"{heads}:BatchNormLinear", "Batch norm, dropout, linear (5th place)"),
        Entry("Linear", f"{heads}:Linear", "Dropout, linear (UniFEx)"),
        Entry("LinearBatchNormPReLU", f"{heads}:LinearBatchNormPReLU", "Linear, batch norm, PReLU (10th place)"),
        Entry("MLP", f"{heads}:MLP", "Hidden layers, then linear (13th place)"),
        Entry("MultiSampleDropout", f"{heads}:MultiSampleDropout", "One linear layer over several masks (4th place)"),
        Entry("ParallelLinears", f"{heads}:ParallelLinears", "Linear layers averaged, a dropout each (3rd place)"),
        Entry("GeM", f"{heads}:GeM", "Generalised mean over tokens or places, then linear"),
        Entry("Whitened", f"{heads}:Whitened", "Dropout, linear, begun as a whitening within classes: for few classes"),
        Entry("PCA", f"{heads}:PCA", "Leading principal components, whitened if asked, fitted on features"),
    ]


@hookimpl
def guie_losses() -> list[Entry]:
    losses = "guie_models.losses"
    return [
        Entry("ArcFace", f"{losses}:ArcFace", "Softmax over cosines with an additive angular margin"),
        Entry("CosFace", f"{losses}:CosFace", "The target's cosine lowered by a margin (1st place)"),
        Entry("NormFace", f"{losses}:NormFace", "Softmax over cosines, no margin"),
        Entry("AdaFace", f"{losses}:AdaFace", "Margins by the length of the embedding"),
        Entry("ElasticFace", f"{losses}:ElasticFace", "Margins drawn at random"),
        Entry("CurricularFace", f"{losses}:CurricularFace", "Hard negatives weigh more as training goes on"),
        Entry(
            "pml/*",
            f"{losses}:PmlLoss",
            "Any loss of pytorch-metric-learning, with a miner if wanted",
            requires=("guie-models[pml]",),
        ),
    ]


@hookimpl
def guie_optimizers() -> list[Entry]:
    return [
        Entry("SAM", "guie_models.optimizers:SAM", "Sharpness-aware minimisation around another optimiser"),
        Entry("ASAM", "guie_models.optimizers:ASAM", "SAM whose ascent does not depend on the weights' scale"),
        Entry("AdamW", "torch.optim:AdamW", "Adam with decoupled weight decay"),
        Entry("Adam", "torch.optim:Adam", "Adam, weight decay as part of the gradient (3rd, 10th place)"),
        Entry("SGD", "torch.optim:SGD", "Stochastic gradient descent, with momentum if asked (1st place)"),
    ]


@hookimpl
def guie_exporters() -> list[Entry]:
    return [
        Entry("TorchScript", "guie_models.exporters:TorchScript", "saved_model.pt: a raw image of any size in"),
        Entry(
            "Onnx",
            "guie_models.exporters:Onnx",
            "model.onnx: preprocessed images and size values in, dynamic batch; 32, 16 or 8 bits",
            requires=("guie-models[onnx]",),
        ),
        Entry(
            "Program", "guie_models.exporters:Program", "model.pt2 of torch.export: preprocessed images, dynamic batch"
        ),
        Entry(
            "Safetensors",
            "guie_models.exporters:Safetensors",
            "embedder.safetensors and its model card, which guie_models.load reads back",
        ),
    ]


@hookimpl
def guie_commands() -> list[Entry]:
    return [Entry("models", "guie_models.commands.models:models", "Read models that others have trained")]
