# The index: PostgreSQL with a synchronous standby in another zone. A failover takes a minute or two (HA, not FT):
# requests wait for it up to 40 s, then are told to come back.

ephemeral "aws_secretsmanager_secret_version" "this" {
  secret_id = var.secret_arn
}

resource "aws_db_subnet_group" "index" {
  name       = "${var.name}-index"
  subnet_ids = [for subnet in aws_subnet.zone : subnet.id]
}

resource "aws_db_instance" "index" {
  identifier                 = "${var.name}-index"
  engine                     = "postgres"
  engine_version             = "16"
  instance_class             = var.index_instance_class
  allocated_storage          = var.index_gib
  max_allocated_storage      = var.index_gib * 4
  storage_type               = "gp3"
  storage_encrypted          = true
  multi_az                   = true
  db_name                    = "holdfast"
  username                   = "holdfast"
  password_wo                = jsondecode(ephemeral.aws_secretsmanager_secret_version.this.secret_string).index_password
  password_wo_version        = 1
  db_subnet_group_name       = aws_db_subnet_group.index.name
  vpc_security_group_ids     = [aws_security_group.index.id]
  publicly_accessible        = false
  backup_retention_period    = 7
  copy_tags_to_snapshot      = true
  auto_minor_version_upgrade = true
  deletion_protection        = true
  skip_final_snapshot        = false
  final_snapshot_identifier  = "${var.name}-index-last"
}
