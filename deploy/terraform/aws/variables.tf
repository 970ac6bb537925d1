variable "name" {
  description = "What everything is called."
  type        = string
  default     = "holdfast"
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,20}$", var.name))
    error_message = "Lower-case letters, digits and dashes, at most 21."
  }
}

variable "region" {
  description = "The AWS region."
  type        = string
}

variable "zones" {
  description = "Availability zones, one node in each. Three or more: one may then go."
  type        = list(string)
  validation {
    condition     = length(var.zones) >= 3 && length(distinct(var.zones)) == length(var.zones)
    error_message = "Three different zones or more: with two, a majority of nothing is left."
  }
}

variable "secret_arn" {
  description = "A secret of Secrets Manager, made by you: JSON with cluster_secret (head -c 32 /dev/urandom | base64) and index_password (16 letters and digits or more)."
  type        = string
}

variable "wheel_uri" {
  description = "Holdfast's wheel in S3, s3://bucket/key; made by `pip wheel --no-deps .` in a clone."
  type        = string
  validation {
    condition     = can(regex("^s3://[^/]+/.+[.]whl$", var.wheel_uri))
    error_message = "As s3://bucket/holdfast-0.1.0-py3-none-any.whl."
  }
}

variable "ami" {
  description = "An image of Debian 12 (amd64) with the AWS command line."
  type        = string
}

variable "instance_type" {
  description = "Of the machines of nodes."
  type        = string
  default     = "m7i.large"
}

variable "stores" {
  description = "Volumes for objects on each machine. Volumes of one zone fail together, as their machine does."
  type        = number
  default     = 2
  validation {
    condition     = var.stores >= 1 && var.stores <= 10
    error_message = "1 to 10."
  }
}

variable "store_gib" {
  description = "Size of each of these volumes, in GiB."
  type        = number
  default     = 500
}

variable "scheme" {
  description = "Of new buckets. rs-4-2 over three zones of two stores: any zone may go."
  type        = string
  default     = "rs-4-2"
}

variable "index_instance_class" {
  description = "Of the PostgreSQL that keeps the index."
  type        = string
  default     = "db.m7g.large"
}

variable "index_gib" {
  description = "Its size, in GiB. An object of 400 bytes of head takes about 1.3 KB."
  type        = number
  default     = 100
}

variable "clients_cidrs" {
  description = "Who may reach S3."
  type        = list(string)
  default     = ["10.0.0.0/8"]
}

variable "internal" {
  description = "Whether the load balancer is reached from inside the network only."
  type        = bool
  default     = true
}
