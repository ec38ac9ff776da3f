package database

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"
)

// entry is a file of an archive: a symbolic link if it has a target.
type entry struct {
	name, target string
	content      []byte
}

// jar packs entries as the library expects them: a zip archive that holds a
// tar archive in xz.
func jar(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var tarball, out bytes.Buffer
	tw := tar.NewWriter(&tarball)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o755, Size: int64(len(e.content))}
		if e.target != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.target
		}
		require.NoError(t, tw.WriteHeader(h))
		_, err := tw.Write(e.content)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	zw := zip.NewWriter(&out)
	w, err := zw.CreateHeader(&zip.FileHeader{Name: "postgres.txz", Method: zip.Store})
	require.NoError(t, err)
	_, err = w.Write(xz(tarball.Bytes()))
	require.NoError(t, err)
	require.NoError(t, zw.Close())
	return out.Bytes()
}

// xz puts data, without compressing it, into an xz stream of one block (The .xz
// File Format, version 1.2.1, sections 2 to 4).
func xz(data []byte) []byte {
	withCRC := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	flags := []byte{0, 1} // the check of a block is a CRC-32

	out := append([]byte("\xFD7zXZ\x00"), withCRC(flags)...)
	// The block's header: 12 bytes, one filter, LZMA2, dictionary of 64 KiB.
	block := withCRC([]byte{2, 0, 0x21, 1, 8, 0, 0, 0})
	control := byte(1) // an uncompressed chunk that resets the dictionary
	for rest := data; len(rest) > 0; control = 2 {
		n := min(len(rest), 1<<16)
		block = binary.BigEndian.AppendUint16(append(block, control), uint16(n-1))
		block, rest = append(block, rest[:n]...), rest[n:]
	}
	block = append(block, 0) // end of the chunks
	unpadded := uint64(len(block)) + crc32.Size
	out = append(out, pad(block)...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(data))

	index := binary.AppendUvarint([]byte{0, 1}, unpadded)
	index = withCRC(pad(binary.AppendUvarint(index, uint64(len(data)))))
	out = append(out, index...)
	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(footer))
	return append(append(out, footer...), "YZ"...)
}
