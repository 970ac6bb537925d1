# A network load balancer before the Envoys, one of which runs beside each node.

resource "aws_lb" "this" {
  name                             = var.name
  load_balancer_type               = "network"
  internal                         = var.internal
  subnets                          = [for subnet in aws_subnet.zone : subnet.id]
  enable_cross_zone_load_balancing = true
}

resource "aws_lb_target_group" "balancers" {
  name                   = "${var.name}-balancers"
  port                   = local.balancer_port
  protocol               = "TCP"
  vpc_id                 = aws_vpc.this.id
  connection_termination = true
  # A balancer's notice and drain.
  deregistration_delay = 60
  health_check {
    protocol            = "HTTP"
    path                = "/-/balancer"
    interval            = 5
    timeout             = 2
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "s3" {
  load_balancer_arn = aws_lb.this.arn
  port              = local.balancer_port
  protocol          = "TCP"
  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.balancers.arn
  }
}

output "endpoint" {
  description = "Where S3 is."
  value       = "http://${aws_lb.this.dns_name}:${local.balancer_port}"
}
