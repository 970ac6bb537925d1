# One machine in each zone, started again in its zone when it dies. Its volumes outlive it: it takes them when it
# starts, and so comes back as the node that it was.

locals {
  zones         = { for number, zone in var.zones : zone => number }
  node_names    = { for zone, number in local.zones : zone => "n${number + 1}" }
  balancer_port = 9000
  node_port     = 9001
  peer_port     = 9100
  volumes = merge([
    for zone, number in local.zones : merge(
      { "${zone}/data" = { zone = zone, slot = "data", gib = 20 } },
      { for store in range(var.stores) : "${zone}/disk${store + 1}" => { zone = zone, slot = "disk${store + 1}", gib = var.store_gib } },
    )
  ]...)
}

resource "aws_ebs_volume" "this" {
  for_each          = local.volumes
  availability_zone = each.value.zone
  size              = each.value.gib
  type              = "gp3"
  encrypted         = true
  tags = {
    Name = "${var.name}-${local.node_names[each.value.zone]}-${each.value.slot}"
    Node = local.node_names[each.value.zone]
    Slot = each.value.slot
  }
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_launch_template" "node" {
  for_each      = local.zones
  name_prefix   = "${var.name}-${local.node_names[each.key]}-"
  image_id      = var.ami
  instance_type = var.instance_type
  user_data = base64encode(templatefile("${path.module}/start.sh.tftpl", {
    application   = var.name
    name          = local.node_names[each.key]
    region        = var.region
    zone          = each.key
    scheme        = var.scheme
    slots         = concat(["data"], [for store in range(var.stores) : "disk${store + 1}"])
    secret_arn    = var.secret_arn
    wheel_uri     = var.wheel_uri
    index_address = aws_db_instance.index.endpoint
    balancer_port = local.balancer_port
    node_port     = local.node_port
    peer_port     = local.peer_port
    node_unit     = file("${path.module}/../../systemd/holdfast.service")
    balancer_unit = file("${path.module}/../../systemd/holdfast-balance.service")
  }))
  vpc_security_group_ids = [aws_security_group.nodes.id]
  iam_instance_profile {
    name = aws_iam_instance_profile.node.name
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name}-${local.node_names[each.key]}", Application = var.name }
  }
}

resource "aws_autoscaling_group" "node" {
  for_each                  = local.zones
  name                      = "${var.name}-${local.node_names[each.key]}"
  min_size                  = 1
  max_size                  = 1
  vpc_zone_identifier       = [aws_subnet.zone[each.key].id]
  target_group_arns         = [aws_lb_target_group.balancers.arn]
  health_check_type         = "EC2"
  health_check_grace_period = 900
  launch_template {
    id      = aws_launch_template.node[each.key].id
    version = aws_launch_template.node[each.key].latest_version
  }
}

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy" "node" {
  role = aws_iam_role.node.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Effect = "Allow", Action = "secretsmanager:GetSecretValue", Resource = var.secret_arn },
      { Effect = "Allow", Action = "s3:GetObject", Resource = replace(var.wheel_uri, "s3://", "arn:aws:s3:::") },
      { Effect = "Allow", Action = "ec2:DescribeVolumes", Resource = "*" },
      {
        Effect    = "Allow"
        Action    = ["ec2:AttachVolume", "ec2:DetachVolume"]
        Resource  = ["arn:aws:ec2:${var.region}:*:volume/*", "arn:aws:ec2:${var.region}:*:instance/*"]
        Condition = { StringEquals = { "aws:ResourceTag/Application" = var.name } }
      },
    ]
  })
}

resource "aws_iam_instance_profile" "node" {
  name = "${var.name}-node"
  role = aws_iam_role.node.name
}
