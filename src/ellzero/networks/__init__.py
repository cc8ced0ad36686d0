"""The networks that come with ellzero: plain modules, as their papers describe them."""

NETWORKS = {
    "lenet-300-100": "ellzero.networks.lenet:lenet_300_100",
    "lenet-5-caffe": "ellzero.networks.lenet:lenet_5_caffe",
}
"""Built-in name -> `package.module:function` that makes the network; imported only when used."""
