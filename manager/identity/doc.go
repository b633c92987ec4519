// Package identity says who is who in a cluster: it makes and reads join tokens, runs the certificate authority, keeps
// a node's certificate on disk and fresh, and checks the certificate of every peer. It knows no cluster state; the
// manager decides whom to admit and uses this package to do it.
//
// # The trust of a cluster
//
// At init a manager creates a [CA]: an ECDSA P-256 key and a self-signed root certificate. Everything else follows from
// the root. A join token carries the root's SHA-256 digest and a secret: with the digest the newcomer recognises the
// cluster, with the secret the cluster recognises the newcomer. Joining is:
//
//  1. [Client.FetchRoot] downloads the root from any manager without trusting the connection, and compares digests.
//  2. [Client.RequestCertificate] connects again, trusting only that root, and sends the token and a signing request.
//  3. The manager's [Issuer] asks [Authorise] what the token entitles to, and [CA.Issue] signs.
//  4. [Store.Save] puts root, certificate and key on disk together or not at all. [Join] does all four.
//
// A node certificate says everything a peer needs: common name = node id, organisational unit = swarm-worker or
// swarm-manager, organisation = cluster id. [Identity] is those three, read from a certificate that was verified.
//
// # Connections
//
// [ServerTLS] and [ClientTLS] read the [Store] at every handshake, so a renewed certificate is used by the next
// connection while those that exist go on undisturbed. Peers are recognised by role and node id, never by host name:
// nodes change address. A server accepts connections without a certificate, since newcomers have none; [Guard.RequireRole]
// in front of every handler but [Handler] decides who may call what (swarm-semantics.md, 8.4).
//
// # Renewal
//
// [Renewer.Run] replaces the certificate at a random point between half and four fifths of its validity. The current
// certificate is the authority for the next one; the join token is not needed and not kept.
//
// A certificate that has expired is still good for its own renewal, a worker's for a year: see [RenewProtocol]. Where those of all managers have
// expired there is no leader to ask, and each manager certifies itself with the key in its store: [Authority.SignOwn].
//
// # Rotation
//
// [Authority.Configure] begins to change over to another root. The old root certifies the new one's key ([CA.CrossSign]), and
// what the new root issues carries that along, so that it is accepted by nodes that know the old root only:
//
//	old root ──signs──► cross-signed new root ──signs──► certificate ◄──signs── new root
//
// Nodes hear of both roots, trust both ([Store.Trust]) and renew. Who has done so shows the new issuer in its description;
// when [Outstanding] finds nobody left, [Authority.Complete] drops the old root and makes join tokens with the new one's digest.
// Until then all of it can be replaced or taken back, because every certificate there is descends from the old root.
//
// An external CA holds the key of the root in place of the managers. [Authority.Sign] then sends requests to it, in CFSSL's
// form, and accepts nothing but a certificate for just that node and key. Before anything depends on it, it has to sign one.
//
// Times come from the Now function of each Config, randomness from its Rand; nil means the system's. All exported types
// may be used concurrently unless they say otherwise. Nothing here starts a goroutine except inside a call that
// waits for it.
package identity
