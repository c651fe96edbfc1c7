// Package csi serves the services of the Container Storage Interface, v1.13, for
// the node it runs on: Identity, Controller and Node, on one unix socket. Any
// node's Controller does for the whole cluster.
//
// # What becomes what
//
//	CreateVolume             a volume with the option replicas, made on its first replicas
//	ControllerPublishVolume  a note in the catalogue: where an orchestrator lets it be used
//	NodeStageVolume          a mount at the staging path; returns when the replica has
//	                         caught up (P11)
//	NodePublishVolume        a copy of that mount at the target path (bind mount), read-only
//	                         if asked for; for a pod with an fsGroup a mount of its own that
//	                         shows all files as of that group
//	NodeUnpublishVolume      takes either away, and the directory
//	NodeUnstageVolume        takes the mount away; the replica stays as placement wants it
//
// A volume's id is that of the catalogue, or, for volumes that were made by hand,
// its name. A volume that is not in the catalogue is NOT_FOUND, never a new one. What
// is to be undone for one is done then; but UNAVAILABLE while this node, which has
// peers, has heard none since its start: one of them may know the volume.
//
// # What is kept
//
// Nothing: the catalogue and the kernel's table of mounts are asked each time. So a
// call may come again, in any order, after a restart of the daemon, which takes
// its mounts over, or of the machine, when the table is empty.
//
// # Locks
//
// Calls that change the table of mounts for one volume follow each other; those of
// other volumes do not wait for them. Staging, which may take long to catch up, has a
// lock for each path instead. Each call is bounded in time: one whose work hangs in the kernel answers
// DEADLINE_EXCEEDED, and the next one for that volume ABORTED.
package csi
