"""The networks that come with ellzero: plain modules, as their papers describe them."""

NETWORKS = {
    "audio-conv": "ellzero.networks.audio:audio_conv",
    "audio-gru": "ellzero.networks.audio:audio_gru",
    "gpt-small": "ellzero.networks.gpt:gpt_small",
    "lenet-300-100": "ellzero.networks.lenet:lenet_300_100",
    "lenet-5-caffe": "ellzero.networks.lenet:lenet_5_caffe",
    "resnet-8": "ellzero.networks.resnet:resnet_8",
}
"""Built-in name -> `package.module:function` that makes the network; imported only when used."""
