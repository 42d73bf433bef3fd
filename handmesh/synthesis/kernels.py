"""The renderer's inner loops, compiled by numba once and cached on disk; they release the interpreter lock."""

from __future__ import annotations

import numpy as np
from numba import njit

# Barycentric weights are summed up along a row: without slack, rounding opens cracks between neighbours.
SLACK = np.float32(1e-5)


@njit(nogil=True, fastmath=True, inline="always")
def _reach(ax, ay, bx, by, cx, cy, width, height):
    """Twice a triangle's signed area, and the samples x0..x1, y0..y1 of the picture that it may cover."""
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    x0 = max(0, int(np.ceil(min(ax, bx, cx))))
    x1 = min(width - 1, int(np.floor(max(ax, bx, cx))))
    y0 = max(0, int(np.ceil(min(ay, by, cy))))
    y1 = min(height - 1, int(np.floor(max(ay, by, cy))))
    return area, x0, x1, y0, y1


@njit(cache=True, nogil=True, fastmath=True)
def rasterise(points, faces, depth, face_ids, weights, near):
    """Nearest triangle per sample; points are (x, y) in samples with integer centres and depth z > near."""
    height, width = depth.shape
    for y in range(height):
        for x in range(width):
            depth[y, x] = 1e9
            face_ids[y, x] = -1
    for f in range(faces.shape[0]):
        ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = points[ia, 0], points[ia, 1], points[ia, 2]
        bx, by, bz = points[ib, 0], points[ib, 1], points[ib, 2]
        cx, cy, cz = points[ic, 0], points[ic, 1], points[ic, 2]
        if az < near or bz < near or cz < near:
            continue
        area, x0, x1, y0, y1 = _reach(ax, ay, bx, by, cx, cy, width, height)
        if abs(area) < 1e-9:
            continue
        if x1 < x0 or y1 < y0:
            continue
        inverse = np.float32(1.0) / area
        ra, rb, rc = np.float32(1.0) / az, np.float32(1.0) / bz, np.float32(1.0) / cz
        step1 = (cy - ay) * inverse
        step2 = -(by - ay) * inverse
        for y in range(y0, y1 + 1):
            w1 = ((x0 - ax) * (cy - ay) - (y - ay) * (cx - ax)) * inverse
            w2 = ((bx - ax) * (y - ay) - (by - ay) * (x0 - ax)) * inverse
            for x in range(x0, x1 + 1):
                w0 = np.float32(1.0) - w1 - w2
                if w0 >= -SLACK and w1 >= -SLACK and w2 >= -SLACK:
                    z = np.float32(1.0) / (w0 * ra + w1 * rb + w2 * rc)
                    if z < depth[y, x]:
                        depth[y, x] = z
                        face_ids[y, x] = f
                        weights[y, x, 0] = w1 * rb * z
                        weights[y, x, 1] = w2 * rc * z
                w1 += step1
                w2 += step2


@njit(cache=True, nogil=True, fastmath=True)
def rasterise_shadow(points, faces, depth):
    """Orthographic depth only (smallest third coordinate per texel)."""
    height, width = depth.shape
    for y in range(height):
        for x in range(width):
            depth[y, x] = 1e9
    for f in range(faces.shape[0]):
        ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay = points[ia, 0], points[ia, 1]
        bx, by = points[ib, 0], points[ib, 1]
        cx, cy = points[ic, 0], points[ic, 1]
        area, x0, x1, y0, y1 = _reach(ax, ay, bx, by, cx, cy, width, height)
        if abs(area) < 1e-9:
            continue
        inverse = np.float32(1.0) / area
        az, bz, cz = points[ia, 2], points[ib, 2], points[ic, 2]
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                w1 = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) * inverse
                w2 = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) * inverse
                w0 = np.float32(1.0) - w1 - w2
                if w0 >= 0 and w1 >= 0 and w2 >= 0:
                    z = w0 * az + w1 * bz + w2 * cz
                    if z < depth[y, x]:
                        depth[y, x] = z


@njit(cache=True, nogil=True, fastmath=True)
def shade_samples(
    vertices, normals, uv, faces, material, atlas, to_linear, lights, colours, harmonics, settings,
    shadow, basis, shadow_map, occlusion, depth, face_ids, weights, samples, radiance, alpha, mask,
):  # fmt: skip
    """Deferred shading of every covered sample, averaged into pixels.

    settings: shadow, wrap, specular, occlusion; shadow: x0, y0, scale, far; basis rows: the light map's axes.
    """
    size = alpha.shape[0]
    share = np.float32(1.0 / (samples * samples))
    tex_h, tex_w = atlas.shape[0], atlas.shape[1]
    bleed = np.array([1.7, 0.75, 0.5], dtype=np.float32) * np.float32(settings[1])
    light_count = lights.shape[0]
    albedo = np.zeros(3, dtype=np.float32)
    total = np.zeros(3, dtype=np.float32)
    for py in range(size):
        for px in range(size):
            radiance[py, px, 0] = 0.0
            radiance[py, px, 1] = 0.0
            radiance[py, px, 2] = 0.0
            # Inside one surface two opposite samples do for all: their mean lies at the pixel's centre.
            cover = np.float32(0.0)
            cover_hand = np.float32(0.0)
            nearest, farthest = np.float32(1e9), np.float32(0.0)
            for sub in range(samples * samples):
                y = py * samples + sub // samples
                x = px * samples + sub % samples
                f = face_ids[y, x]
                if f < 0:
                    continue
                cover += share
                if material[f] == 0:
                    cover_hand += share
                nearest = min(nearest, depth[y, x])
                farthest = max(farthest, depth[y, x])
            if cover == 0:
                alpha[py, px] = 0.0
                mask[py, px] = 0.0
                continue
            whole = cover > 0.99 and (cover_hand > 0.99 or cover_hand == 0) and farthest - nearest < 0.003
            stride, share_here = 1, share
            if whole and samples > 1:
                stride, share_here = samples * samples - 1, np.float32(0.5)
            for sub in range(0, samples * samples, stride):
                y = py * samples + sub // samples
                x = px * samples + sub % samples
                f = face_ids[y, x]
                if f < 0:
                    continue
                kind = material[f]
                w1 = weights[y, x, 0]
                w2 = weights[y, x, 1]
                w0 = np.float32(1.0) - w1 - w2
                ia, ib, ic = faces[f, 0], faces[f, 1], faces[f, 2]
                qx = w0 * vertices[ia, 0] + w1 * vertices[ib, 0] + w2 * vertices[ic, 0]
                qy = w0 * vertices[ia, 1] + w1 * vertices[ib, 1] + w2 * vertices[ic, 1]
                qz = w0 * vertices[ia, 2] + w1 * vertices[ib, 2] + w2 * vertices[ic, 2]
                nx = w0 * normals[ia, 0] + w1 * normals[ib, 0] + w2 * normals[ic, 0]
                ny = w0 * normals[ia, 1] + w1 * normals[ib, 1] + w2 * normals[ic, 1]
                nz = w0 * normals[ia, 2] + w1 * normals[ib, 2] + w2 * normals[ic, 2]
                norm = np.float32(1.0) / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
                nx, ny, nz = nx * norm, ny * norm, nz * norm
                norm = np.float32(1.0) / np.sqrt(qx * qx + qy * qy + qz * qz)
                vx, vy, vz = -qx * norm, -qy * norm, -qz * norm
                facing = nx * vx + ny * vy + nz * vz
                if facing < 0:
                    # Interpolated normals lean past the silhouette: reflect them into the viewer's half space.
                    nx, ny, nz = nx - 2 * facing * vx, ny - 2 * facing * vy, nz - 2 * facing * vz
                    facing = -facing
                # texture, bilinear in the stored (gamma) encoding
                u = w0 * uv[ia, 0] + w1 * uv[ib, 0] + w2 * uv[ic, 0]
                v = w0 * uv[ia, 1] + w1 * uv[ib, 1] + w2 * uv[ic, 1]
                u = min(max(u, np.float32(0.0)), np.float32(tex_w - 1.001))
                v = min(max(v, np.float32(0.0)), np.float32(tex_h - 1.001))
                iu, iv = int(u), int(v)
                fu, fv = u - iu, v - iv
                for k in range(3):
                    top = atlas[iv, iu, k] * (1 - fu) + atlas[iv, iu + 1, k] * fu
                    low = atlas[iv + 1, iu, k] * (1 - fu) + atlas[iv + 1, iu + 1, k] * fu
                    albedo[k] = to_linear[int(top * (1 - fv) + low * fv + np.float32(0.5))]
                gloss = np.float32(atlas[iv, iu, 3]) * np.float32(1.0 / 255.0)
                # shadow of the first light, 3 x 3 lookups
                lit = np.float32(1.0)
                if settings[0] > 0:
                    sx = (basis[0, 0] * qx + basis[0, 1] * qy + basis[0, 2] * qz - shadow[0]) * shadow[2]
                    sy = (basis[1, 0] * qx + basis[1, 1] * qy + basis[1, 2] * qz - shadow[1]) * shadow[2]
                    sz = shadow[3] - (basis[2, 0] * qx + basis[2, 1] * qy + basis[2, 2] * qz)
                    count = 0
                    for dy in range(-1, 2):
                        for dx in range(-1, 2):
                            tx = min(max(int(sx + np.float32(0.5)) + dx, 0), shadow_map.shape[1] - 1)
                            ty = min(max(int(sy + np.float32(0.5)) + dy, 0), shadow_map.shape[0] - 1)
                            if sz - np.float32(0.004) < shadow_map[ty, tx]:
                                count += 1
                    lit = np.float32(1.0) - np.float32(settings[0]) * (1 - np.float32(count) / np.float32(9.0))
                ao = occlusion[y // samples, x // samples]
                for k in range(3):
                    light = (
                        harmonics[0, k] + harmonics[1, k] * ny + harmonics[2, k] * nz + harmonics[3, k] * nx
                        + harmonics[4, k] * nx * ny + harmonics[5, k] * ny * nz
                        + harmonics[6, k] * (3 * nz * nz - 1) + harmonics[7, k] * nx * nz
                        + harmonics[8, k] * (nx * nx - ny * ny)
                    )  # fmt: skip
                    # Light that bounces inside a crease takes the skin's colour: occlusion is weaker and redder.
                    open_k = ao + (1 - ao) * albedo[k] * np.float32(0.7)
                    total[k] = max(light, np.float32(0.0)) * open_k * albedo[k]
                shine = np.float32(0.0)
                for i in range(light_count):
                    reach = lit if i == 0 else np.float32(0.5) + np.float32(0.5) * ao
                    nl = nx * lights[i, 0] + ny * lights[i, 1] + nz * lights[i, 2]
                    for k in range(3):
                        b = bleed[k] if kind <= 1 else np.float32(0.05)
                        diffuse = max(np.float32(0.0), (nl + b) / ((1 + b) * (1 + b)))
                        total[k] += albedo[k] * diffuse * reach * colours[i, k]
                    if nl > 0:
                        hx, hy, hz = lights[i, 0] + vx, lights[i, 1] + vy, lights[i, 2] + vz
                        norm = np.float32(1.0) / np.sqrt(hx * hx + hy * hy + hz * hz + np.float32(1e-9))
                        nh = max(np.float32(0.0), (nx * hx + ny * hy + nz * hz) * norm)
                        n4 = nh * nh * nh * nh
                        n16 = n4 * n4 * n4 * n4
                        lobe = n16 * n4 * n4 * (1 + 3 * gloss) + np.float32(0.3) * n4 * nh * nh
                        shine = np.float32(settings[2]) * gloss * lobe * nl * reach
                        for k in range(3):
                            total[k] += shine * colours[i, k]
                edge = 1 - facing
                rim = np.float32(settings[2]) * gloss * np.float32(0.35) * edge * edge * edge * edge * ao
                for k in range(3):
                    value = total[k] + rim * max(harmonics[0, k], np.float32(0.0))
                    radiance[py, px, k] += value * share_here
            alpha[py, px] = cover
            mask[py, px] = cover_hand


@njit(cache=True, nogil=True, fastmath=True)
def expose(radiance, alpha, background, light_gain, background_gain, encode):
    """Develop premultiplied linear radiance (S, S, 3) over a uint8 background; (S, S, 3) uint8.

    encode (1024,): sRGB value 0..255 of squared steps of linear light. Highlights roll off above 0.7.
    """
    height, width = alpha.shape
    out = np.empty((height, width, 3), dtype=np.uint8)
    knee = np.float32(0.7)
    for y in range(height):
        for x in range(width):
            a = alpha[y, x]
            for k in range(3):
                value = np.float32(0.0)
                if a > 0:
                    light = max(radiance[y, x, k] / a * light_gain, np.float32(0.0))
                    if light > knee:
                        light = knee + (1 - knee) * (1 - np.exp((knee - light) / (1 - knee)))
                    value = encode[int(np.sqrt(light) * 1023 + np.float32(0.5))] * a
                value += (1 - a) * background_gain * background[y, x, k]
                out[y, x, k] = int(min(value + np.float32(0.5), np.float32(255.0)))
    return out


@njit(cache=True, nogil=True, fastmath=True)
def vertex_normals(vertices, faces):
    """Area-weighted unit normals (V, 3) float32 of an (V, 3) float32 mesh."""
    normals = np.zeros_like(vertices)
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        e1x = vertices[b, 0] - vertices[a, 0]
        e1y = vertices[b, 1] - vertices[a, 1]
        e1z = vertices[b, 2] - vertices[a, 2]
        e2x = vertices[c, 0] - vertices[a, 0]
        e2y = vertices[c, 1] - vertices[a, 1]
        e2z = vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = e1y * e2z - e1z * e2y, e1z * e2x - e1x * e2z, e1x * e2y - e1y * e2x
        for i in (a, b, c):
            normals[i, 0] += nx
            normals[i, 1] += ny
            normals[i, 2] += nz
    for i in range(vertices.shape[0]):
        length = np.sqrt(normals[i, 0] ** 2 + normals[i, 1] ** 2 + normals[i, 2] ** 2) + np.float32(1e-20)
        normals[i] /= length
    return normals
