"""One handler for each operation that is served, by subject."""

from holdfast.s3.handlers import (
    bucket,
    configuration,
    listing,
    multipart,
    object_read,
    object_write,
    service,
)
from holdfast.s3.handlers.configuration import Handler
from holdfast.s3.operations import OPERATIONS

HANDLERS: dict[str, Handler] = {
    "ListBuckets": service.list_buckets,
    "CreateBucket": bucket.create_bucket,
    "HeadBucket": bucket.head_bucket,
    "DeleteBucket": bucket.delete_bucket,
    "GetBucketLocation": bucket.get_bucket_location,
    "ListObjects": listing.list_objects,
    "ListObjectsV2": listing.list_objects_v2,
    "GetObject": object_read.get_object,
    "HeadObject": object_read.head_object,
    "GetObjectAttributes": object_read.get_object_attributes,
    "PutObject": object_write.put_object,
    "CopyObject": object_write.copy_object,
    "DeleteObject": object_write.delete_object,
    "DeleteObjects": object_write.delete_objects,
    "CreateMultipartUpload": multipart.create_upload,
    "UploadPart": multipart.upload_part,
    "UploadPartCopy": multipart.copy_part,
    "CompleteMultipartUpload": multipart.complete_upload,
    "AbortMultipartUpload": multipart.abort_upload,
    "ListParts": multipart.list_parts,
    "ListMultipartUploads": multipart.list_uploads,
    **dict.fromkeys(configuration.NAMES, configuration.describe),
}

assert HANDLERS.keys() == {o.name for o in OPERATIONS if o.served}, "the table says what is served"
