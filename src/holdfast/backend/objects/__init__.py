"""Blobs as whole objects in a bucket: S3 and its likes, GCS, Azure, a directory, memory."""
