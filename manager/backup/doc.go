// Package backup is the sealed file that a cluster's backup is, and what is said about it. It knows nothing of tables: what they
// are written and read as is their store's affair.
//
// # The file
//
//	miniswarm backup 1 \n
//	header as JSON, space, CRC-32C of it in hexadecimal \n
//	chunks: length (4 bytes, the highest bit marks the last chunk),
//	        CRC-32C of length and bytes (4 bytes), sealed bytes
//
// The first chunk is the [Manifest] as JSON, the others are the content. Each is sealed with XChaCha20-Poly1305 under a key of this
// file alone, with the chunk's number and whether it is the last as nonce and the header as associated data: chunks
// cannot be changed, exchanged, left out or added, and a file that was cut off is known as such. Lengths and checksums are in the
// clear, so that [Check] finds damage, and its offset, without the key.
//
// # Secrets
//
// The key is derived from what people keep, a [Secret]: a recovery key of 256 random bits ("SWMBKP-1-...", in the form of Swarm's unlock
// keys) through HKDF, or a passphrase through scrypt. A salt of the file makes every file's key another one.
package backup
