"""The networks that come with ellzero: plain modules, as their papers describe them."""

NETWORKS = {
    "audio-conv": "ellzero.networks.audio:audio_conv",
    "audio-gru": "ellzero.networks.audio:audio_gru",
    "autoencoder": "ellzero.networks.autoencoder:autoencoder",
    "ds-cnn": "ellzero.networks.ds_cnn:ds_cnn",
    "gpt-small": "ellzero.networks.gpt:gpt_small",
    "lenet-300-100": "ellzero.networks.lenet:lenet_300_100",
    "lenet-5-caffe": "ellzero.networks.lenet:lenet_5_caffe",
    "mobilenet-v1-025": "ellzero.networks.mobilenet:mobilenet_v1_025",
    "resnet-20": "ellzero.networks.resnet:resnet_20",
    "resnet-50": "ellzero.networks.resnet:resnet_50",
    "resnet-8": "ellzero.networks.resnet:resnet_8",
    "vgg-small": "ellzero.networks.vgg:vgg_small",
}
"""Built-in name -> `package.module:function` that makes the network; imported only when used."""
