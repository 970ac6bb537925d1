resource "aws_vpc" "this" {
  cidr_block           = "10.73.0.0/16"
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
}

resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.this.id
  }
}

resource "aws_subnet" "zone" {
  for_each                = local.zones
  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(aws_vpc.this.cidr_block, 8, each.value)
  map_public_ip_on_launch = true
  tags                    = { Name = "${var.name}-${each.key}" }
}

resource "aws_route_table_association" "zone" {
  for_each       = aws_subnet.zone
  subnet_id      = each.value.id
  route_table_id = aws_route_table.this.id
}

resource "aws_security_group" "nodes" {
  name        = "${var.name}-nodes"
  description = "Nodes and their balancers"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_egress_rule" "nodes" {
  security_group_id = aws_security_group.nodes.id
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}

# Clients, through the load balancer, which keeps their addresses, and the load balancer's own looks.
resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each          = toset(concat(var.clients_cidrs, [aws_vpc.this.cidr_block]))
  security_group_id = aws_security_group.nodes.id
  ip_protocol       = "tcp"
  from_port         = local.balancer_port
  to_port           = local.balancer_port
  cidr_ipv4         = each.value
}

# Nodes among themselves: S3 for balancers, the peer protocol for nodes.
resource "aws_vpc_security_group_ingress_rule" "nodes" {
  for_each                     = { s3 = local.node_port, peers = local.peer_port }
  security_group_id            = aws_security_group.nodes.id
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
  referenced_security_group_id = aws_security_group.nodes.id
}

resource "aws_security_group" "index" {
  name        = "${var.name}-index"
  description = "The index"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "index" {
  security_group_id            = aws_security_group.index.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
  referenced_security_group_id = aws_security_group.nodes.id
}
